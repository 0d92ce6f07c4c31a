"""`--actions`: a file of splits and dividends, the view that it makes of files of bars, and what a home keeps of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tradeloop.cli.actions import read_actions
from tradeloop.cli.adjusting import adjusted_view, stored_view
from tradeloop.cli.client.embedded import embedded
from tradeloop.cli.commands.train import prepare
from tradeloop.cli.homes import check_home, remember
from tradeloop.cli.main import main
from tradeloop.cli.markets import beside, learnt
from tradeloop.cli.progress import Stages
from tradeloop.cli.source import Source, open_source
from tradeloop.common.bar_store.sql import SqlBarStore
from tradeloop.common.clock import SystemClock
from tradeloop.common.errors import UserError
from tradeloop.common.market import BAR_PRICES, EVER_US, Timeframe
from tradeloop.common.strategy import load
from tradeloop.ingest.adapters.files import read_bars

EXAMPLE = load("example")
HEAD = "instrument,ex_date,kind,value,known_at,zone"
SPLIT = "ACME,2021-09-01,split,4,2021-08-01,America/New_York"


def bars_of(path: Path, count: int = 700, seed: int = 1, splits: Sequence[tuple[str, float]] = ()) -> Path:
    """A file of days; its prices fall by a split, as they are traded."""
    random = np.random.default_rng(seed)
    days = np.datetime64("2020-01-01") + np.arange(count)
    prices = 400.0 * np.exp(random.normal(0.0, 0.01, (count, 2)).cumsum(axis=0).mean(axis=1))
    for day, value in splits:
        prices[days >= np.datetime64(day)] /= value
    opens = prices * np.exp(random.normal(0.0, 0.002, count))
    rows = [
        f"{day},{opened!r},{max(opened, close) * 1.01!r},{min(opened, close) * 0.99!r},{close!r},{1000 + i}"
        for i, (day, opened, close) in enumerate(zip(days, opens.tolist(), prices.tolist(), strict=True))
    ]
    path.write_text("\n".join(["date,open,high,low,close,volume", *rows, ""]))
    return path


def acme(folder: Path) -> Path:
    return bars_of(folder / "acme.csv", splits=[("2021-09-01", 4.0)])


def actions(folder: Path, *rows: str) -> Path:
    path = folder / "actions.csv"
    path.write_text("\n".join([HEAD, *rows, ""]))
    return path


def view(folder: Path, *rows: str, name: str | None = "acme", as_known: str | None = None) -> Source:
    value = str(folder / "acme.csv")
    source = open_source([value if name is None else f"ACME={value}"], EXAMPLE, name=name)
    return adjusted_view(source, actions(folder, *rows), as_known, named=name is not None)


def test_the_view_has_an_id_of_its_own_and_says_what_was_done(tmp_path: Path) -> None:
    acme(tmp_path)
    rows = [SPLIT, "acme,2021-03-01,dividend,2,2021-03-05,", "MSFT,2020-02-02,split,2,,", "ACME,2030-01-01,split,2,,"]
    source = view(tmp_path, *rows, name=None)
    (id_,) = source.universe.ids
    assert re.fullmatch(r"file:acme-[0-9a-f]{6}\.adjusted", id_)
    assert source.universe.name.endswith("-adjusted")
    assert source.history.instruments == source.universe.ids
    said = "\n".join(source.notes)
    assert "1 split and 1 dividend adjusted, as known on 20" in said
    assert "Dates in actions.csv begin at 00:00 America/New_York or UTC" in said
    assert "1 action of other instruments not used: MSFT" in said
    assert "1 action without effect" in said
    assert "Warning: 1 action became known after the ex date, first of file:acme-" in said
    assert np.abs(np.diff(np.log(source.history.close[:, 0]))).max() < 0.1, "no jump is left"
    early = "\n".join(view(tmp_path, *rows, as_known="2021-03-02").notes)
    assert "0 splits and 0 dividends adjusted, as known on 2021-03-02 00:00 UTC" in early
    assert "2 rows not used: not known then" in early
    assert "without known_at" not in early


def test_a_home_keeps_the_view_beside_the_bars_as_traded(tmp_path: Path) -> None:
    file = acme(tmp_path)
    days = file.read_text().splitlines()
    file.write_text("\n".join([*days[:690], ""]))
    home = tmp_path / "home"
    raw = open_source([f"ACME={tmp_path / 'acme.csv'}"], EXAMPLE, name="acme")
    source = view(tmp_path, SPLIT, "ACME,2021-03-01,dividend,2,,", name="acme-view")
    for one in (raw, source):
        check_home(home, one)
        with embedded(home, [one.portfolio(EXAMPLE)]) as stack:
            prepare(stack.client, Stages(), learnt(one, len(one.bars), EXAMPLE), EXAMPLE, home)
        remember(home, one)
    with closing(SqlBarStore(f"sqlite:///{home / 'bars.db'}", SystemClock())) as store:
        for one in (raw, source):
            stored = store.read(one.universe.ids, Timeframe.D1, -EVER_US, EVER_US)
            for name in (*BAR_PRICES, "volume", "open_us"):
                assert np.array_equal(getattr(stored, name), getattr(one.history, name)), name
    assert not np.array_equal(raw.history.close, source.history.close)
    file.write_text("\n".join([*days, ""]))
    more = view(tmp_path, SPLIT, "ACME,2021-03-01,dividend,2,,", "ACME,2021-11-28,dividend,1,,", name="acme-view")
    assert len(more.history) == len(source.history) + 11
    check_home(home, more)
    corrected = view(tmp_path, SPLIT, "ACME,2021-03-01,dividend,3,,", name="acme-view")
    with pytest.raises(UserError, match="a name stands for one history"):
        check_home(home, corrected)


def test_an_action_of_the_last_day_keeps_all_before_it(tmp_path: Path) -> None:
    acme(tmp_path)
    before, after = view(tmp_path, SPLIT), view(tmp_path, SPLIT, "ACME,2021-11-29,dividend,5,,")
    changed = np.flatnonzero(before.history.close[:, 0] != after.history.close[:, 0])
    assert changed.tolist() == [698, 699]


def test_the_files_of_a_view_are_those_of_its_bars(tmp_path: Path) -> None:
    acme(tmp_path)
    source = view(tmp_path, SPLIT)
    files, readings = stored_view(source, tmp_path / "home")
    assert readings == {}
    (instrument,) = source.universe.instruments
    bars, _ = read_bars(files[instrument.id], instrument, Timeframe.D1)
    for name in (*BAR_PRICES, "volume", "open_us"):
        assert np.array_equal(getattr(bars, name), getattr(source.history, name)), name


def test_each_instrument_of_a_universe_has_its_own_actions_and_file(tmp_path: Path) -> None:
    acme(tmp_path)
    bars_of(tmp_path / "long.csv", seed=3, splits=[("2021-05-03", 0.1)])
    head, *rows = (tmp_path / "long.csv").read_text().splitlines()
    acme_rows = (tmp_path / "acme.csv").read_text().splitlines()[1:]
    both = [row for one, other in zip(acme_rows, rows, strict=True) for row in (f"{one},ACME", f"{other},B.B")]
    (tmp_path / "long.csv").write_text("\n".join([f"{head},symbol", *both, ""]))
    of_file = open_source([str(tmp_path / "long.csv")], EXAMPLE, name="two")
    of_ids = open_source([f"nyse:{one}={tmp_path / 'long.csv'}#{one}" for one in ("ACME", "B.B")], EXAMPLE)
    for source in (of_file, of_ids):
        told = actions(tmp_path, SPLIT, "B.B,2021-05-03,split,0.1,,")
        found = adjusted_view(source, told, None, named=True)
        assert "2 splits and 0 dividends adjusted" in "\n".join(found.notes)
        assert np.abs(np.diff(np.log(found.history.close), axis=0)).max() < 0.1
        files, _ = stored_view(found, tmp_path / "home")
        assert len(set(files.values())) == 2
        for a, instrument in enumerate(found.universe.instruments):
            bars, _ = read_bars(files[instrument.id], instrument, Timeframe.D1)
            assert np.array_equal(bars.close[:, 0], found.history.close[:, a])
    assert found.universe.ids == ("nyse:ACME.adjusted", "nyse:B.B.adjusted")
    alike = [f"nyse:{one}={tmp_path / 'long.csv'}#{symbol}" for one, symbol in (("B-B", "ACME"), ("B.B", "B.B"))]
    source = open_source(alike, EXAMPLE)
    told = actions(tmp_path, SPLIT.replace("ACME", "nyse:B-B"), "nyse:B.B,2021-05-03,split,0.1,,")
    found = adjusted_view(source, told, None, named=True)
    assert np.abs(np.diff(np.log(found.history.close), axis=0)).max() < 0.1
    assert len(set(stored_view(found, tmp_path / "home")[0].values())) == 2
    with pytest.raises(UserError, match="ACME may be file:ACME or nyse:ACME: give the id"):
        adjusted_view(replace(of_file, also=(of_ids,)), actions(tmp_path, SPLIT), None, named=True)


def test_markets_beside_are_adjusted_too(tmp_path: Path) -> None:
    acme(tmp_path)
    other = bars_of(tmp_path / "other.csv", seed=2, splits=[("2021-05-03", 0.1)])
    source = beside(open_source([str(tmp_path / "acme.csv")], EXAMPLE), [str(other)], EXAMPLE, (None, None))
    both = adjusted_view(source, actions(tmp_path, SPLIT, "OTHER,2021-05-03,split,0.1,,"), None, named=False)
    for market in both.markets:
        assert np.abs(np.diff(np.log(market.history.close[:, 0]))).max() < 0.1
        assert market.universe.ids[0].endswith(".adjusted")


WRONG_FILES = [
    ("instrument,kind,value\nA,split,2", "there is no column ex_date"),
    (f"{HEAD},note\nA,2021-01-01,split,2,,,x", "what is column note?"),
    (f"{HEAD}\n", "there is no split and no dividend in it"),
    (f"{HEAD}\nA,2021-01-01,merger,2,,", "line 2: kind 'merger': give split or dividend"),
    (f"{HEAD}\nA,01/02/2021,split,2,,", "line 2: ex_date '01/02/2021': give a date such as 2024-06-10"),
    (f"{HEAD}\nA,2021-01-01,split,0,,", "line 2: value '0': a split is new shares for each old one"),
    (f"{HEAD}\nA,2021-01-01,dividend,-1,,", "line 2: value '-1': a dividend is an amount per share"),
    (f"{HEAD}\nA,2021-01-01,split,4:1,,", "line 2: value '4:1': a split is"),
    (f"{HEAD}\nA,2021-01-01,dividend,nan,,", "line 2: value 'nan'"),
    (f"{HEAD}\nA,2021-01-01,split,2,,Mars/Base", "line 2: zone 'Mars/Base': there is no such time zone"),
    (f"{HEAD}\n,2021-01-01,split,2,,", "line 2: the instrument is missing"),
    (f"{HEAD}\nA,2021-01-01,split", "line 2: it has more or fewer cells"),
    (f"{HEAD}\nA,2021-01-01,dividend,1,,\nA,2021-01-01,dividend,2,,", "line 3: line 2 has a dividend of A of the same"),
]


@pytest.mark.parametrize(("text", "says"), WRONG_FILES)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "actions.csv"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        read_actions(path)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_does_not_go_together_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, book = acme(tmp_path), tmp_path / "book.yaml"
    told = actions(tmp_path, SPLIT)
    assert main(["portfolio", "new", "--bars", f"ACME={file}", "--name", "acme", "--out", str(book)]) == 0
    capsys.readouterr()
    stranger = tmp_path / "stranger.csv"
    stranger.write_text(f"{HEAD}\nMSFT,2021-09-01,split,4,,\n")
    home = ["--home", str(tmp_path / "home")]
    plain = ["train", "--bars", f"ACME={file}", *home]
    for arguments, says in [
        ([*plain, "--actions", str(told), "--portfolio", str(book)], "--actions does not go with --portfolio"),
        ([*plain, "--actions", str(stranger)], "has actions of MSFT, and the bars are of file:ACME"),
        ([*plain, "--as-known", "2021-01-01"], "give their file by --actions"),
        ([*plain, "--actions", str(told), "--as-known", "2999-01-01"], "is in the future"),
        ([*plain, "--actions", str(tmp_path / "no.csv")], "no.csv: there is no such file"),
        (["demo", "--source", "simulated", "--actions", str(told), "--out", str(tmp_path / "o")], "leave one of them"),
    ]:
        assert main(arguments) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("tradeloop: ")
        assert says in said
    assert not (tmp_path / "home").exists()


def test_a_demo_trades_the_view_and_a_backtest_finds_its_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, told = acme(tmp_path), actions(tmp_path, SPLIT)
    home, options = tmp_path / "home", ["--bars", f"ACME={file}", "--actions", str(told)]
    out = tmp_path / "out"
    assert main(["demo", *options, "--home", str(home), "--steps", "256", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "1 split and 0 dividends adjusted, as known on" in said.err
    assert "Backtest equals live to 0.0e+00" in said.out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["markets"][0]["instruments"] == ["file:ACME.adjusted"]
    assert summary["source"] == "acme.csv, adjusted"
    assert main(["backtest", *options, "--home", str(home)]) == 0
    assert "1 split and 0 dividends adjusted" in capsys.readouterr().err
    assert main(["backtest", "--bars", f"ACME={file}", "--home", str(home)]) == 2, "the raw bars have no model"
    assert "example.acme" in capsys.readouterr().err
