"""Files as people have them: each kind, written by hand from the same bars, gives these bars or one clear line."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import polars as pl
import pytest

from tradeloop.common.errors import UserError
from tradeloop.common.market import Instrument, Timeframe, from_us, to_us
from tradeloop.common.messages.ingest import Reading
from tradeloop.ingest.adapters.files import SeveralInstruments, read_bars, read_blocks
from tradeloop.ingest.ports import whole

INSTRUMENT = Instrument(id="x:A")
START = datetime(2024, 5, 6, tzinfo=UTC)
COUNT = 40
NEW_YORK = ZoneInfo("America/New_York")
SHARED = Path(__file__).resolve().parents[4] / "shared"

Bars = list[tuple[datetime, float, float, float, float, float]]


def bars(step: timedelta = timedelta(minutes=1), start: datetime = START, scale: float = 1.0) -> Bars:
    chance = np.random.default_rng(3)
    close = np.round(100 * scale * np.exp(np.cumsum(chance.normal(0, 1e-3, COUNT))), 4)
    opened = np.r_[100.0 * scale, close[:-1]]
    return [
        (start + i * step, o, round(max(o, c) + 0.01, 4), round(min(o, c) - 0.01, 4), c, 10.5 + i)
        for i, (o, c) in enumerate(zip(opened.tolist(), close.tolist(), strict=True))
    ]


BARS, DAYS = bars(), bars(timedelta(days=1))


def rows(given: Bars, time: Callable[[datetime], str], separator: str = ",", decimal: str = ".") -> list[str]:
    return [separator.join([time(row[0]), *(f"{cell:.4f}".replace(".", decimal) for cell in row[1:])]) for row in given]


def epoch(factor: int) -> Callable[[datetime], str]:
    return lambda time: str(int(time.timestamp()) * factor)


def form(text: str) -> Callable[[datetime], str]:
    return lambda time: time.strftime(text)


OHLCV = "time,open,high,low,close,volume"


def csv(given: Bars, time: str = "%Y-%m-%d %H:%M:%S", header: str = OHLCV) -> str:
    return "\n".join([header, *rows(given, form(time))])


def semicolon(text: str) -> str:
    return text.replace(",", ";")


def binance() -> str:
    return "\n".join(
        f"{row},{epoch(1000)(t)},1.5,7,2.5,3.5,0" for row, (t, *_) in zip(rows(BARS, epoch(1000)), BARS, strict=True)
    )


TEXTS: Mapping[str, tuple[str, Bars]] = {
    "plain": (csv(BARS), BARS),
    "tabs": (csv(BARS).replace(",", "\t"), BARS),
    "pipes": (csv(BARS).replace(",", "|"), BARS),
    "semicolons": (semicolon(csv(BARS)), BARS),
    "decimal commas": ("\n".join([semicolon(OHLCV), *rows(BARS, form("%d.%m.%Y %H:%M"), ";", ",")]), BARS),
    "quoted decimal commas": (
        "\n".join(
            [OHLCV, *(",".join(f'"{c}"' for c in r.split("|")) for r in rows(BARS, form("%Y-%m-%d %H:%M"), "|", ","))]
        ),
        BARS,
    ),
    "thousands": (
        "\n".join(
            [
                OHLCV,
                *(
                    f'{t:%Y-%m-%d %H:%M},"{o * 100:,.2f}","{h * 100:,.2f}","{lo * 100:,.2f}","{c * 100:,.2f}",{v}'
                    for t, o, h, lo, c, v in BARS
                ),
            ]
        ),
        [(t, *(float(f"{x * 100:.2f}") for x in prices), v) for t, *prices, v in BARS],  # type: ignore[misc]
    ),
    "comments": ("# made by\n# an exporter\n" + csv(BARS), BARS),
    "a URL above": ("https://www.example.com\n" + csv(BARS), BARS),
    "newest first": ("\n".join([OHLCV, *reversed(rows(BARS, form("%Y-%m-%dT%H:%MZ")))]), BARS),
    "epoch s": ("\n".join([OHLCV, *rows(BARS, epoch(1))]), BARS),
    "epoch us": ("\n".join([OHLCV, *rows(BARS, epoch(10**6))]), BARS),
    "epoch ns": ("\n".join(["window_start,open,high,low,close,volume", *rows(BARS, epoch(10**9))]), BARS),
    "binance klines": (binance(), BARS),
    "open, close, high, low": (
        "\n".join(f"{epoch(1000)(t)},{o},{c},{h},{lo},{v}" for t, o, h, lo, c, v in BARS),
        BARS,
    ),
    "low, high, open, close": (
        "\n".join(f"{epoch(1)(t)},{lo},{h},{o},{c},{v}" for t, o, h, lo, c, v in BARS),
        BARS,
    ),
    "kraken": ("\n".join(f"{row},5" for row in rows(BARS, epoch(1))), BARS),
    "histdata": ("\n".join(rows(BARS, form("%Y%m%d %H%M%S"), ";")), BARS),
    "metatrader without a header": ("\n".join(rows(BARS, form("%Y.%m.%d,%H:%M"))), BARS),
    "metatrader": (
        "\n".join(
            [
                "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>",
                *(f"{row}\t0" for row in rows(BARS, form("%Y.%m.%d\t%H:%M:%S"), "\t")),
            ]
        ),
        BARS,
    ),
    "unnamed index": (csv(BARS, header=",Open,High,Low,Close,Volume"), BARS),
    "an unknown name": (csv(BARS, header="when it began,Open,High,Low,Close,Volume"), BARS),
    "gmt time": (csv(BARS, "%d.%m.%Y %H:%M:%S.000", "Gmt time,Open,High,Low,Close,Volume"), BARS),
    "am and pm": (csv(bars(timedelta(hours=1)), "%Y-%m-%d %I-%p"), bars(timedelta(hours=1))),
    "compact minutes": (csv(BARS, "%Y%m%d%H%M"), BARS),
    "compact seconds": (csv(BARS, "%Y%m%d%H%M%S"), BARS),
    "compact days": (csv(DAYS, "%Y%m%d"), DAYS),
    "day first": (csv(DAYS, "%d/%m/%Y"), DAYS),
    "month first": (csv(DAYS, "%m/%d/%Y"), DAYS),
    "named months": ("\n".join([semicolon(OHLCV), *rows(DAYS, form("%b %d, %Y"), ";")]), DAYS),
    "days of named months": (csv(DAYS, "%d-%b-%Y"), DAYS),
    "date and clock": (csv(BARS, "%Y-%m-%d,%H:%M:%S", "Date,Time,Open,High,Low,Close,Volume"), BARS),
    "compact date and clock": (csv(BARS, "%Y%m%d,%H%M", "<DTYYYYMMDD>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>"), BARS),
    "two times that agree": (
        "\n".join(
            [
                f"timestamp,datetime{OHLCV[4:]}",
                *(
                    f"{epoch(1000)(t)},{r}"
                    for r, (t, *_) in zip(rows(BARS, form("%Y-%m-%dT%H:%M:%S.000Z")), BARS, strict=True)
                ),
            ]
        ),
        BARS,
    ),
    "an adjusted close": (
        "\n".join(
            [
                "Date,Open,High,Low,Close,Adj Close,Volume",
                *(f"{r.rpartition(',')[0]},1.5,{r.rpartition(',')[2]}" for r in rows(DAYS, form("%Y-%m-%d"))),
            ]
        ),
        DAYS,
    ),
    "volume of the base": (
        "\n".join(
            [
                "Unix,Symbol,Open,High,Low,Close,Volume USDT,Volume BTC",
                *(f"{epoch(1)(t)},BTC/USDT,{o},{h},{lo},{c},9.5,{v}" for t, o, h, lo, c, v in BARS),
            ]
        ),
        BARS,
    ),
    "tick volume": (csv(BARS, header="date,open,high,low,close,tick_volume"), BARS),
    "bid prices": (csv(BARS, header="DateTime,BidOpen,BidHigh,BidLow,BidClose,Volume"), BARS),
    "JSON records": (json.dumps([dict(zip("tohlcv", [t.isoformat(), *r], strict=True)) for t, *r in BARS]), BARS),
    "JSON lines": (
        "\n".join(json.dumps(dict(zip("tohlcv", [t.timestamp(), *r], strict=True))) for t, *r in BARS),
        BARS,
    ),
    "JSON rows": (json.dumps([[int(t.timestamp() * 1000), *map(str, r)] for t, *r in BARS]), BARS),
    "JSON of a reply": (
        json.dumps({"bars": [dict(zip("tohlcv", [t.isoformat(), *r], strict=True)) for t, *r in BARS], "next": None}),
        BARS,
    ),
    "JSON columns": (
        json.dumps(
            {
                "s": "ok",
                **{n: [row[i] if i else int(row[0].timestamp()) for row in BARS] for i, n in enumerate("tohlcv")},
            }
        ),
        BARS,
    ),
}


def check(path: Path, expected: Bars, reading: Reading | None = None) -> list[str]:
    """The file holds these bars; gives the remarks on it."""
    found, report = read_bars(str(path), INSTRUMENT, reading=reading)
    assert [from_us(us) for us in found.open_us] == [row[0].astimezone(UTC) for row in expected]
    for column, name in enumerate(("open", "high", "low", "close", "volume"), 1):
        assert getattr(found, name)[:, 0].tolist() == [row[column] for row in expected], name
    assert (report.first_open, report.last_close) == (expected[0][1], expected[-1][4])
    assert report.volume == pytest.approx(sum(row[5] for row in expected), rel=1e-12)
    blocks, again = whole(read_blocks(str(path), INSTRUMENT, reading=reading, block_bytes=700), INSTRUMENT)
    assert np.array_equal(blocks.open_us, found.open_us)
    assert np.array_equal(blocks.close, found.close)
    assert again.columns == report.columns
    return list(report.remarks)


def refusal(path: Path, reading: Reading | None = None) -> str:
    with pytest.raises(UserError) as raised:
        read_bars(str(path), INSTRUMENT, reading=reading)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(str(path.parent))
    return str(raised.value).removeprefix(str(path))


@pytest.mark.parametrize("kind", TEXTS)
def test_text(tmp_path: Path, kind: str) -> None:
    text, expected = TEXTS[kind]
    ending = "json" if kind.startswith("JSON") else "csv"
    path = tmp_path / f"bars.{ending}"
    path.write_text(text)
    check(path, expected)


@pytest.mark.parametrize("end", ["csv.gz", "txt", "tsv", "csv.zst", "zip", "utf-16.csv", "json.gz"])
def test_containers(tmp_path: Path, end: str) -> None:
    path, text = tmp_path / f"bars.{end}", csv(BARS)
    if end == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("README.txt.md", "no bars")
            archive.writestr("folder/A.csv", text)
    elif end == "csv.zst":
        import pyarrow as pa

        path.write_bytes(pa.compress(text.encode(), codec="zstd", asbytes=True))
    elif end == "json.gz":
        path.write_bytes(gzip.compress(TEXTS["JSON records"][0].encode()))
    else:
        data = text.encode("utf-16" if end.startswith("utf") else "utf-8")
        path.write_bytes(gzip.compress(data) if end.endswith("gz") else data)
    check(path, BARS)


def frame() -> pd.DataFrame:
    table = pd.DataFrame(BARS, columns=["Date", "Open", "High", "Low", "Close", "Volume"])
    return table.set_index("Date")


def test_tables_of_pandas(tmp_path: Path) -> None:
    for name, table in (
        ("index", frame()),
        ("local", frame().tz_convert(NEW_YORK)),
        ("plain", frame().tz_localize(None)),
    ):
        table.to_parquet(tmp_path / f"{name}.parquet")
        check(tmp_path / f"{name}.parquet", BARS)
        table.to_csv(tmp_path / f"{name}.csv")
        check(tmp_path / f"{name}.csv", BARS)
    frame().rename_axis(None).to_parquet(tmp_path / "unnamed.parquet")
    check(tmp_path / "unnamed.parquet", BARS)
    frame().reset_index().to_feather(tmp_path / "bars.feather")
    check(tmp_path / "bars.feather", BARS)
    pl.from_pandas(frame().reset_index()).write_ipc_stream(tmp_path / "bars.arrow")
    check(tmp_path / "bars.arrow", BARS)
    for orient in ("records", "columns", "index", "split"):
        (frame().reset_index() if orient == "records" else frame()).to_json(
            tmp_path / f"{orient}.json", orient=orient, date_format="iso", double_precision=15
        )
        check(tmp_path / f"{orient}.json", BARS)


def test_wide_tables(tmp_path: Path) -> None:
    one, other = frame(), frame() * 2
    table = pd.concat({"AAPL": one, "MSFT": other}, axis=1)
    for name, wide in (("by symbol", table), ("by price", table.swaplevel(axis=1))):
        wide.to_csv(tmp_path / f"{name}.csv")
        wide.to_parquet(tmp_path / f"{name}.parquet")
        flat = wide.copy()
        flat.columns = ["_".join(pair) for pair in wide.columns]
        flat.to_csv(tmp_path / f"{name} flat.csv")
    assert len(list(tmp_path.iterdir())) == 6
    for path in tmp_path.iterdir():
        with pytest.raises(SeveralInstruments) as raised:
            read_bars(str(path), INSTRUMENT)
        assert raised.value.symbols == ("AAPL", "MSFT")
        check(Path(f"{path}#AAPL"), BARS)
        found, _ = read_bars(f"{path}#MSFT", INSTRUMENT)
        assert found.close[:, 0].tolist() == [2 * row[4] for row in BARS]


def test_a_file_of_one_symbol_as_yfinance_writes_it(tmp_path: Path) -> None:
    table = frame()
    table.columns = pd.MultiIndex.from_product([table.columns, ["AAPL"]], names=["Price", "Ticker"])
    table.to_csv(tmp_path / "aapl.csv")
    assert any("AAPL" in remark for remark in check(tmp_path / "aapl.csv", BARS))


def test_several_files_of_one_instrument(tmp_path: Path) -> None:
    first, second, wrong = (tmp_path / f"{name}.csv" for name in ("first", "second", "wrong"))
    first.write_text(csv(BARS[:25]))
    second.write_text("\n".join([OHLCV, *reversed(rows(BARS[20:], epoch(1)))]))
    remarks = check(second, BARS, Reading(more=(str(first),)))
    assert any("2 files are joined" in one and "5 bars are in two of them, and agree" in one for one in remarks)
    other = [*BARS[20:]]
    other[2] = (*other[2][:4], other[2][3], other[2][5])
    wrong.write_text(csv(other))
    line = refusal(first, Reading(more=(str(wrong),)))
    assert f"close is {BARS[22][4]} in line 24 of first.csv and {other[2][4]} in line 4 of wrong.csv" in line


def test_an_archive_of_months_is_one_instrument_and_one_of_symbols_is_several(tmp_path: Path) -> None:
    months, symbols = tmp_path / "months.zip", tmp_path / "symbols.zip"
    with zipfile.ZipFile(months, "w") as archive:
        archive.writestr("BTCUSDT-1m-2024-02.csv", csv(BARS[20:]))
        archive.writestr("BTCUSDT-1m-2024-01.csv", csv(BARS[:20]))
    check(months, BARS)
    with zipfile.ZipFile(symbols, "w") as archive:
        archive.writestr("AAPL.csv", csv(BARS))
        archive.writestr("MSFT.csv", csv(DAYS))
    with pytest.raises(SeveralInstruments):
        read_bars(str(symbols), INSTRUMENT)
    check(Path(f"{symbols}#AAPL"), BARS)


def test_options(tmp_path: Path) -> None:
    path = tmp_path / "bars.csv"
    winter = bars(timedelta(days=7), datetime(2024, 1, 2, 9, 30, tzinfo=NEW_YORK))
    hours = [(t.replace(tzinfo=None), *r) for t, *r in bars(timedelta(hours=1), datetime(2024, 3, 9, 20))]
    assert len(winter) == len(hours)
    path.write_text(csv(BARS, "%Y-%m-%d %H:%M", "k,m,n,p,q,r"))
    columns = dict(zip(OHLCV.split(","), "kmnpqr", strict=True))
    assert "its first line is no header" in refusal(path)
    check(path, BARS, Reading(columns=columns))
    check(path, BARS, Reading(columns={name: str(at) for at, name in enumerate(OHLCV.split(","), 1)}))
    path.write_text(csv(BARS))
    moved = [(t + timedelta(hours=4), *r) for t, *r in BARS]
    check(path, moved, Reading(zone="America/New_York"))  # type: ignore[arg-type]
    path.write_text("\n".join([OHLCV, *rows(BARS, epoch(1))]))
    assert "its times name their zone, UTC: leave --tz out" in refusal(path, Reading(zone="America/New_York"))
    assert "most rows are 0:00:00.060000 apart" in refusal(path, Reading(time_unit="ms"))


def test_the_clock_put_on_and_back(tmp_path: Path) -> None:
    path = tmp_path / "bars.csv"
    begin = datetime(2024, 11, 3, 1, tzinfo=UTC)
    expected = bars(timedelta(hours=1), begin)
    path.write_text("\n".join([OHLCV, *rows(expected, lambda t: t.astimezone(NEW_YORK).strftime("%Y-%m-%d %H:%M"))]))
    check(path, expected, Reading(zone="America/New_York"))
    path.write_text("\n".join([OHLCV, *rows(expected, lambda t: t.astimezone(NEW_YORK).isoformat())]))
    check(path, expected)
    path.write_text(csv(bars(timedelta(hours=1), datetime(2024, 3, 10, tzinfo=UTC))))
    assert "line 4: 2024-03-10 02:00:00 does not exist in America/New_York" in refusal(
        path, Reading(zone="America/New_York")
    )
    days = [(datetime(2024, 3, 1, tzinfo=NEW_YORK) + timedelta(days=i), *row[1:]) for i, row in enumerate(DAYS)]
    path.write_text("\n".join([OHLCV, *rows(days, datetime.isoformat)]))
    check(path, days)
    assert read_bars(str(path), INSTRUMENT)[1].timeframe is Timeframe.D1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            csv(bars(timedelta(days=1), datetime(2024, 6, 1))[:12], "%d/%m/%Y"),
            "the day or the month first: say which by --dates",
        ),
        (
            "\n".join([OHLCV, *(f'{t:%Y-%m-%d},"1,200","1,300","1,100","1,250",5' for t, *_ in DAYS)]),
            "may have a decimal comma, or thousands in groups: say which by --decimal",
        ),
        (
            "\n".join(
                [
                    f"Date,{OHLCV}",
                    *(
                        f"{t + timedelta(days=40):%Y-%m-%d %H:%M},{r}"
                        for r, (t, *_) in zip(rows(BARS, epoch(1)), BARS, strict=True)
                    ),
                ]
            ),
            "columns time and Date could each be the time, and say 2024-05-06 00:00:00",
        ),
        (
            csv(BARS, header="time,open,high,low,close,Close"),
            "columns close and Close could each be the close: say which",
        ),
        (csv(BARS, header="time,BidOpen,AskOpen,high,low,close"), "columns BidOpen and AskOpen could each be the open"),
        ("\n".join(f"{row},{i}" for i, row in enumerate(rows(BARS, form("x%H%M")))), "its first line is no header"),
        (
            csv([*DAYS[:20], *bars(timedelta(hours=1), DAYS[20][0])]),
            "line 22: the distance of rows changes from 1d to 1h",
        ),
        (csv([*BARS[:20], *bars(timedelta(days=1), BARS[20][0])]), "the distance of rows changes from 1m to 1d"),
        (
            "\n".join(
                [f"{OHLCV},who", *(f"{r},{'ab'[i // 40]}" for i, r in enumerate(rows([*BARS, *BARS], epoch(1))))]
            ),
            "column who names 2 instruments (a, b)",
        ),
        (
            "\n".join([OHLCV, *(f"{r[0]:%Y-%m-%d},0,{r[2]},{r[3]},{r[4]},{r[5]}" for r in DAYS)]),
            "line 2: open 0.0 is not positive (40 such rows): get the opens from its source",
        ),
        ('{"answer": 42}', "is JSON without a list of bars"),
        ('[{"t": 1,', "is no JSON"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bars.csv"
    path.write_text(text)
    assert says in refusal(path)


def test_what_is_doubtful_is_said(tmp_path: Path) -> None:
    path = tmp_path / "bars.csv"
    split = [row if i < 20 else (row[0], *(x / 4 for x in row[1:5]), row[5]) for i, row in enumerate(DAYS)]
    path.write_text(csv(split))  # type: ignore[arg-type]
    said = read_bars(str(path), INSTRUMENT)[1].remarks
    assert len(said) == 1
    assert said[0].startswith("line 22 of bars.csv: the price goes from")
    assert "about 1/4: an unadjusted split, or another unit?" in said[0]
    rounded = [(t, o, max(o, c), min(o, c) * (1 + 2e-15), c, v) for t, o, _, _, c, v in DAYS]
    path.write_text("\n".join([OHLCV, *(f"{t:%Y-%m-%d},{','.join(map(repr, r))}" for t, *r in rounded)]))
    found, report = read_bars(str(path), INSTRUMENT)
    assert (found.low <= np.minimum(found.open, found.close)).all()
    assert "moved by rounding" in report.remarks[0]
    zero = "\n".join([OHLCV, *(f"{r[0]:%Y-%m-%d},0,{r[2]},{r[3]},{r[4]},{r[5]}" for r in DAYS)])
    path.write_text(zero)
    found, report = read_bars(str(path), INSTRUMENT, reading=Reading(repair=("zero-opens",)))
    assert found.open[1:, 0].tolist() == np.clip(found.close[:-1, 0], found.low[1:, 0], found.high[1:, 0]).tolist()
    assert report.remarks == ("40 opens of 0 were replaced by the close before, the first in line 2 of bars.csv",)


@pytest.mark.parametrize(("share", "step"), [(0.5, 60), (0.04, 60), (0.1, 3600)])
def test_a_sparse_file_has_the_grid_that_divides_all(tmp_path: Path, share: float, step: int) -> None:
    chance = np.random.default_rng(1)
    places = np.flatnonzero(chance.random(int(1200 / share)) < share)
    path = tmp_path / "bars.csv"
    path.write_text("\n".join([OHLCV, *(f"{1714953600 + int(i) * step},1,2,0.5,1.5,1" for i in places)]))
    _, report = read_bars(str(path), INSTRUMENT)
    assert report.timeframe.seconds == step
    assert report.gaps == int((np.diff(places) > 1).sum())


def test_rows_without_prices_are_no_bars(tmp_path: Path) -> None:
    lines = csv(BARS).split("\n")
    lines[5] = lines[5].split(",")[0] + ",NaN,NaN,NaN,NaN,NaN"
    path = tmp_path / "bars.csv"
    path.write_text("\n".join(lines))
    assert check(path, BARS[:4] + BARS[5:]) == ["1 rows have no prices: taken for times without a bar"]


def test_a_large_newest_first_file_is_turned_in_blocks(tmp_path: Path) -> None:
    count = 30_000
    path = tmp_path / "bars.csv"
    with path.open("w") as file:
        file.write(f"{OHLCV}\n")
        file.writelines(f"{1714953600 + 60 * i},1,2,0.5,{1 + i / count!r},{i}\n" for i in reversed(range(count)))
    last = -1
    for block in read_blocks(str(path), INSTRUMENT, block_bytes=2**16):
        assert len(block["open_us"]) < count // 10
        assert int(block["open_us"][0]) > last
        last = int(block["open_us"][-1])
    assert last == (1714953600 + 60 * (count - 1)) * 1_000_000
    assert to_us(from_us(last)) == last


FINDINGS = SHARED / "findings" / "files"


@pytest.mark.skipif(not FINDINGS.is_dir(), reason="the folder ../shared/findings/files is not here")
@pytest.mark.parametrize(
    ("name", "rows", "timeframe", "first", "last", "volume"),
    [
        ("alpaca_daily_0500", 900, "1d", "2018-01-02T05:00", "2021-06-14T04:00", 2858587800.0),
        ("alpaca_tohlcv", 1200, "1m", "2024-05-06T00:00", "2024-05-06T19:59", 40216.066),
        ("cryptodatadownload", 1200, "1h", "2024-01-02T00:00", "2024-02-20T23:00", 39349.666),
        ("dukascopy_gmt_time", 1200, "1m", "2024-05-06T00:00", "2024-05-06T19:59", 40216.066),
        ("excel_decimal_comma_semicolon", 900, "1d", "2018-01-02T00:00", "2021-06-14T00:00", 2858587800.0),
        ("kraken_very_sparse_1m", 1200, "1m", "2024-05-06T03:22", "2024-06-16T13:12", 40216.066),
        ("mt5_export", 1200, "1m", "2024-05-06T00:00", "2024-05-06T19:59", 401582.0),
        ("oanda_4h_2200", 1200, "4h", "2024-01-01T22:00", "2024-07-19T18:00", 39349.666),
        ("parquet_ny_1d", 900, "1d", "2018-01-02T05:00", "2021-06-14T04:00", 2858587800.0),
        ("tradingview_daily_stock", 900, "1d", "2018-01-02T14:30", "2021-06-14T13:30", 2858587800.0),
        ("us_stock_1h_at_half_past_utc", 1200, "1h", "2024-01-02T14:30", "2024-08-28T15:30", 44012.053),
        ("us_stock_5m_offset_dst", 1200, "5m", "2024-03-01T14:30", "2024-03-22T15:55", 44012.053),
    ],
)
def test_what_others_brought(name: str, rows: int, timeframe: str, first: str, last: str, volume: float) -> None:
    path = next(one for one in (FINDINGS / name).iterdir() if one.name != "EXPECTED")
    _, report = read_bars(str(path), INSTRUMENT)
    times = (report.first, report.last)
    assert (report.rows, report.timeframe) == (rows, timeframe)
    assert times == tuple(datetime.fromisoformat(time).replace(tzinfo=UTC) for time in (first, last))
    assert report.volume == pytest.approx(volume, rel=1e-9)
