"""The bars that a command works on: how files are named, matched, cut, understood and refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tradeloop.cli.inputs import Inputs
from tradeloop.cli.markets import beside, cut, learnt, named
from tradeloop.cli.naming import named_files, symbol_of
from tradeloop.cli.progress import Stages
from tradeloop.cli.source import Source, open_source, split
from tradeloop.cli.understood import understood
from tradeloop.common.errors import UserError
from tradeloop.common.market import Instrument, Timeframe, Universe, to_us
from tradeloop.common.portfolio import Costs, Portfolio, portfolio_yaml
from tradeloop.common.strategy import RewardContext, Strategy, load, log_return, on, reward, talib


@reward(version="1")
class Nothing:
    def __call__(self, c: RewardContext) -> object:
        return np.zeros(len(c.equity))


PLAIN = Strategy("plain", [log_return(1)], Nothing(), window=4)  # type: ignore[arg-type]
SLOW = Strategy("slow", [log_return(1), on("4h", log_return(1))], Nothing())  # type: ignore[arg-type]


def write(path: Path, count: int = 40, *, price: float = 100.0, first: int = 0, seconds: int = 3600) -> Path:
    start = np.datetime64("2026-01-05T00:00:00")
    times = [start + (first + i) * np.timedelta64(seconds, "s") for i in range(count)]
    rows = [f"{time},{price},{price + 2},{price - 2},{price + i % 2},5" for i, time in enumerate(times)]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["timestamp,open,high,low,close,volume", *rows, ""]))
    return path


def opened(*bars: object, strategy: Strategy = PLAIN, name: str | None = None) -> Source:
    return open_source([str(one) for one in bars], strategy, name=name)


def refused(*bars: object, strategy: Strategy = PLAIN, name: str | None = None) -> str:
    with pytest.raises(UserError) as raised:
        opened(*bars, strategy=strategy, name=name)
    return str(raised.value)


def test_files_of_one_name_and_other_contents_are_other_instruments(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a" / "prices.csv"), write(tmp_path / "b" / "prices.csv", price=200.0)
    first, second = opened(one), opened(other)
    assert first.universe.name.startswith("prices-")
    assert first.universe.ids == (f"file:{first.universe.name}",)
    assert first.universe.name != second.universe.name
    assert opened(write(tmp_path / "c" / "prices.csv")).universe == first.universe, "the same bars have the same name"
    lines = one.read_text().splitlines()
    one.write_text("\n".join(lines[:20] + lines[21:]))
    assert opened(one).universe.name != first.universe.name, "without a row it is another history"


def test_a_given_name_is_the_name(tmp_path: Path) -> None:
    file = write(tmp_path / "prices.csv")
    assert (opened(file, name="btc").universe.name, opened(file, name="btc").universe.ids) == ("btc", ("file:btc",))
    source = opened(f"BTC/USDT={file}")
    assert (source.universe.name, source.universe.ids) == ("btc-usdt", ("file:BTC/USDT",))
    source = opened(f"binance:BTC={file}", f"ETH={write(tmp_path / 'e.csv', price=50.0)}", name="pair")
    assert (source.universe.name, source.universe.ids) == ("pair", ("binance:BTC", "file:ETH"))


@pytest.mark.parametrize("name", ["x" * 200, "Ünïcödé №1 — données", "BRK.B", "-", "1INCH_usdt (2)", "..", "a=b"])
def test_any_file_name_gives_valid_names(tmp_path: Path, name: str) -> None:
    source = opened(write(tmp_path / f"{name}.csv"))
    assert len(source.universe.name) <= 32
    assert source.portfolio(PLAIN).name == source.universe.name


def test_a_symbol_keeps_its_dots() -> None:
    assert [symbol_of(Path(f"BRK.{c}.csv.gz")) for c in "AB"] == ["BRK.A", "BRK.B"]


def test_a_folder_is_a_universe_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    for n, symbol in enumerate(("AAA", "BBB", "CCC")):
        write(tmp_path / "stocks" / f"{symbol}.csv", price=50.0 + n, first=n)
    (tmp_path / "stocks" / "notes.txt").write_text("x")
    source = opened(tmp_path / "stocks")
    assert [id_.split("-")[0] for id_ in source.universe.ids] == ["file:AAA", "file:BBB", "file:CCC"]
    assert source.bars.open.shape == (42, 3)
    said = "\n".join(understood(source))
    assert "1 of 4 entries are no files of bars: notes.txt" in said
    assert "3 instruments; all of them have a bar at 38 of 42 times" in said


def test_a_range_cuts_the_bars_and_warms_up_on_those_before(tmp_path: Path) -> None:
    file = str(write(tmp_path / "prices.csv"))
    whole = open_source([file], PLAIN)
    cut = open_source([file], PLAIN, span=("2026-01-05T10:00", "2026-01-05T20:00+00:00"))
    assert (cut.first, cut.stop, len(cut.bars)) == (10, 20, 10)
    assert np.array_equal(cut.features(PLAIN), whole.features(PLAIN)[10:20])
    assert not np.isnan(cut.features(PLAIN)).any()
    assert cut.range(0, 10) == whole.range(10, 20)
    assert cut.universe == whole.universe
    assert any("Of these 10 bars are used" in line for line in understood(cut))


def test_what_was_understood_is_said(tmp_path: Path) -> None:
    file = write(tmp_path / "prices.csv")
    lines = file.read_text().splitlines()
    file.write_text("\n".join([f"{lines[0]},tick_volume", *(f"{line},7" for line in [*lines[1:9], *lines[12:]])]))
    first, second, third = understood(opened(file, name="gold"))
    assert "prices.csv is file:gold: 37 bars of 1h, 2026-01-05 00:00 to 2026-01-06 15:00 UTC" in first
    assert "zone none, read as UTC; calendar weekdays, 1 gap" in first
    assert second.endswith("timestamp as time, open, high, low, close, volume; ignored: tick_volume")
    assert third.endswith("the volume is volume; if it is tick_volume, say so by --columns volume=NAME")


def bad_inputs(folder: Path) -> dict[str, tuple[Sequence[object], dict[str, object], str]]:
    hours, days = write(folder / "hours.csv"), write(folder / "days.csv", seconds=86_400)
    late, empty = write(folder / "late.csv", first=500, price=9.0), folder / "empty"
    empty.mkdir()
    other = write(folder / "other.csv", price=50.0)
    long = folder / "long.csv"
    rows = hours.read_text().splitlines()
    long.write_text("\n".join([f"{rows[0]},tic", *(f"{row},{'AB'[i % 3 == 2]}" for i, row in enumerate(rows[1:]))]))
    return {
        "no file": ([folder / "no.csv"], {}, "no.csv: there is no such file"),
        "nothing behind the name": (["BTC="], {}, "--bars BTC=: give FILE"),
        "a named folder": ([f"BTC={empty}"], {}, "whose files name themselves"),
        "an empty folder": ([empty], {}, "no file in this folder ends in .csv"),
        "a file twice": ([hours, hours], {}, "has the file"),
        "a name twice": ([f"A={hours}", f"A={other}"], {}, "is 100.0 in line 2 of hours.csv and 50.0 in line 2 of"),
        "the same bars twice": ([hours, write(folder / "copy" / "hours.csv")], {}, "hold the same bars"),
        "two timeframes": ([hours, days], {}, "give files of one timeframe"),
        "no common bar": ([hours, late], {}, "no bar at which all 2 instruments have one"),
        "one name for several instruments": ([f"A={long}"], {}, "names 2 instruments (A, B): name one by FILE#SYMBOL"),
        "an instrument that is not in the file": ([f"{long}#C"], {}, "names 2 instruments (A, B): C is none of them"),
        "an instrument that is sparse": ([long], {}, "by --timeframe (column tic names 2 instruments: A, B)"),
        "a wrong name": ([hours], {"name": "Gold!"}, "--name Gold!: a name is lower-case"),
        "a strategy of a shorter timeframe": (
            [days], {"strategy": SLOW}, "slow has features on 4h, and days.csv has bars of 1d: they must be longer"
        ),
    }  # fmt: skip


CASES = [
    "no file", "nothing behind the name", "a named folder", "an empty folder", "a file twice", "a name twice",
    "the same bars twice", "two timeframes", "no common bar", "one name for several instruments",
    "an instrument that is not in the file", "an instrument that is sparse", "a wrong name",
    "a strategy of a shorter timeframe",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_named(tmp_path: Path, case: str) -> None:
    cases = bad_inputs(tmp_path)
    assert list(cases) == CASES
    bars, options, says = cases[case]
    assert says in refused(*bars, **options)  # type: ignore[arg-type]


def test_files_are_matched_to_the_instruments_of_a_portfolio(tmp_path: Path) -> None:
    ids = ("binance:BTC/USDT", "binance:ETH/USDT")
    universe = Universe(name="crypto", instruments=tuple(Instrument(id=id_) for id_ in ids), timeframe=Timeframe.H1)
    portfolio = Portfolio(name="book", universe=universe, strategy="plain")
    btc, eth = write(tmp_path / "btc-usdt.csv"), write(tmp_path / "e.csv", price=7.0)
    source = open_source([f"binance:ETH/USDT={eth}", str(btc)], PLAIN, portfolio)
    assert source.files == {ids[0]: btc, ids[1]: eth}
    assert source.bars.open[0].tolist() == [100.0, 7.0]
    with pytest.raises(UserError, match="add --bars binance:ETH/USDT=FILE"):
        open_source([str(btc)], PLAIN, portfolio)
    with pytest.raises(UserError, match="which of them e is cannot be told"):
        open_source([str(btc), str(eth)], PLAIN, portfolio)
    with pytest.raises(UserError, match="needs 4h bars, which universe crypto does not have"):
        open_source([f"ETH/USDT={eth}", str(btc)], SLOW, portfolio)


def test_a_strategy_that_reads_volume_is_refused_where_one_file_lacks_it(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.csv"), write(tmp_path / "b.csv", price=7.0)
    other.write_text("\n".join(line.rpartition(",")[0] for line in other.read_text().splitlines()))
    strategy = Strategy("loud", [talib("MFI", timeperiod=5)], Nothing())  # type: ignore[arg-type]
    assert "b.csv: strategy loud has a feature that needs volumes" in refused(one, other, strategy=strategy)


def test_a_name_with_an_equals_sign_may_be_a_path(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a=b.csv"))
    assert [(str(one.path), one.name) for one in named_files([path])[0]] == [(path, None)]


def test_a_file_of_several_instruments_is_a_universe(tmp_path: Path) -> None:
    """Whether their rows come in turn or one instrument after the other."""
    one, other = (write(tmp_path / name, price=price) for name, price in (("a", 100.0), ("b", 50.0)))
    header, *rows = one.read_text().splitlines()
    both = [(row, "AXP") for row in rows] + [(row, "BRK/B") for row in other.read_text().splitlines()[1:]]
    sources = []
    for order in (both, sorted(both)):
        path = tmp_path / "stocks.csv"
        path.write_text("\n".join([f"{header},tic", *(f"{row},{symbol}" for row, symbol in order)]))
        sources.append(opened(path))
    assert sources[0].universe == sources[1].universe, "the same bars have the same name"
    source = sources[0]
    assert [id_.rpartition("-")[0] for id_ in source.universe.ids] == ["file:AXP", "file:BRK-B"]
    assert source.universe.name.startswith("stocks-")
    assert source.bars.open[0].tolist() == [100.0, 50.0]
    assert understood(source)[1].startswith("stocks.csv#BRK/B is file:BRK-B-")
    assert opened(path, name="stocks").universe.ids == ("file:AXP", "file:BRK/B")
    assert opened(f"BRK={path}#BRK/B").universe.ids == ("file:BRK",)


@pytest.mark.parametrize("timeframe", Timeframe)
def test_the_default_strategy_takes_bars_of_any_length(tmp_path: Path, timeframe: Timeframe) -> None:
    source = opened(write(tmp_path / "prices.csv", 500, seconds=timeframe.seconds), strategy=load("example"))
    assert source.universe.timeframe is timeframe
    features = source.features(load("example"))
    assert np.isfinite(features[121:]).all(), "500 rows are enough to warm up"


@pytest.mark.parametrize("costs", [Costs(), Costs(impact_bps=5.0), Costs(max_participation=0.1)])
@pytest.mark.parametrize("volume", [True, False])
def test_costs_that_cannot_be_charged_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], costs: Costs, volume: bool
) -> None:
    path = write(tmp_path / "prices.csv")
    if not volume:
        path.write_text("\n".join(line.rpartition(",")[0] for line in path.read_text().splitlines()))
    universe = Universe(name="u", instruments=(Instrument(id="file:prices"),), timeframe=Timeframe.H1)
    book = tmp_path / "book.yaml"
    book.write_text(portfolio_yaml(Portfolio(name="p", universe=universe, strategy="example", costs=costs)))
    Inputs((str(path),), portfolio=book).open(Stages(), "Reading bars")
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Warning: ")]
    if volume or costs == Costs():
        assert warnings == []
    else:
        named = "impact_bps" if costs.impact_bps else "max_participation"
        assert warnings == [
            f"Warning: 40 of 40 bars have no volume (file:prices), and {named} of the costs counts for nothing there"
        ]


def with_also(bars: Path, *also: object, end: str | None = None) -> Source:
    return beside(opened(bars), [str(one) for one in also], PLAIN, (None, end))


def test_more_markets_are_learnt_from_as_far_as_they_closed_before_trading_begins(tmp_path: Path) -> None:
    own = write(tmp_path / "own.csv", first=10)
    early = write(tmp_path / "early.csv", price=50.0)
    late = write(tmp_path / "late.csv", price=70.0, first=25)
    source = with_also(own, early, f"LATE={late}")
    assert [one.universe.ids[0].split("-")[0] for one in source.markets] == ["file:own", "file:early", "file:LATE"]

    whole = learnt(source, 40, PLAIN)
    assert [one.bars for one in whole] == [40, 40, 40], "where nothing is traded nothing is left out"
    assert cut(whole) == ""
    found = learnt(source, 28, PLAIN)
    traded_us = source.bars.open_us[28]
    assert [one.bars for one in found] == [28, 38, 13]
    for one in found[1:]:
        closes = one.source.bars.close_us
        assert closes[one.bars - 1] <= traded_us < closes[one.bars]
        assert to_us(one.asked.range.end) == closes[one.bars - 1]
    assert re.match(
        r"Learnt from 3 markets: own-\w+ \(28 bars\), early-\w+ \(38 bars\), LATE \(13 bars\)", named(found)
    )
    assert cut(found).startswith("Of the other markets 29 bars after 2026-01-06 14:00 UTC, when trading begins")
    assert named(learnt(opened(own), 28, PLAIN)) == "", "of one market there is nothing to say"
    with pytest.raises(
        UserError, match=r"late.csv: 0 bars to learn from before 2026-01-05 20:00 UTC, when trading begins"
    ):
        learnt(source, 10, PLAIN)
    assert [len(one.bars) for one in with_also(own, early, end="2026-01-06").markets] == [40, 24]


@pytest.mark.parametrize(
    ("also", "text"),
    [
        (["{0}/same.csv"], "same.csv holds the same bars as own.csv: give each market once"),
        (["A={0}/other.csv", "A={0}/third.csv"], "would be file:A in universe a, and other.csv is file:A"),
        (["{0}/minutes.csv"], "has bars of 1m, and own.csv of 1h"),
        (["{0}/two"], "has 2 instruments, and each market has one"),
        (["{0}/none.csv"], "none.csv"),
        (["A={0}/two"], "--also A={0}/two: {0}/two is a folder"),
    ],
)
def test_a_market_that_cannot_be_learnt_from_is_refused(tmp_path: Path, also: list[str], text: str) -> None:
    own = write(tmp_path / "own.csv")
    write(tmp_path / "same.csv")
    write(tmp_path / "minutes.csv", seconds=60)
    for n, name in enumerate(("other.csv", "third.csv", "two/a.csv", "two/b.csv")):
        write(tmp_path / name, price=50.0 + n)
    with pytest.raises(UserError) as raised:
        with_also(own, *(one.format(tmp_path) for one in also))
    assert text.format(tmp_path) in str(raised.value)
    with pytest.raises(UserError, match=r"universe a-b-.* has 2: give one instrument with --bars"):
        with_also(tmp_path / "two", tmp_path / "other.csv")


def test_bars_from_before_1970_are_bars(tmp_path: Path) -> None:
    rows = [f"{np.datetime64('1969-12-01') + i},1,1,1,1,5" for i in range(60)]
    path = tmp_path / "old.csv"
    path.write_text("\n".join(["Date,Open,High,Low,Close,Volume", *rows, ""]))
    source = opened(path)
    assert len(source.bars) == 60
    assert source.range(0, 60).start.year == 1969
    assert split(source, PLAIN, 0.7) == 42
    with pytest.raises(UserError, match="trading would begin at 1969-12-31 00:00 UTC, and the services keep books"):
        split(source, PLAIN, 0.5)


def test_bars_that_overlap_those_of_another_instrument_are_refused(tmp_path: Path) -> None:
    """A decision at the close of one would be filled before it was taken."""
    hours = write(tmp_path / "hours.csv")
    halves = tmp_path / "halves.csv"
    halves.write_text(hours.read_text().replace(":00:00,", ":30:00,"))
    message = refused(hours, halves)
    assert "the 1h bar of file:halves-" in message
    assert "opens 2026-01-05T00:30:00+00:00 overlaps that of file:hours-" in message
