from __future__ import annotations

import csv
import gzip
import io
import itertools
from collections.abc import Callable, Generator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeloop.common.errors import UserError
from tradeloop.common.market import BAR_COLUMNS, EVER_US, BarArrays, Instrument, Series, Timeframe, from_us, to_us
from tradeloop.common.messages.ingest import Reading
from tradeloop.ingest.adapters.files import SeveralInstruments, read_bars, read_blocks
from tradeloop.ingest.contracts import BAR_SOURCE_CHECKS, Write, check_bar_source
from tradeloop.ingest.ports import BarSource, FileReport, whole

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the folder ../shared/data is not here")

INSTRUMENT = Instrument(id="x:A")
START = datetime(2022, 1, 3, tzinfo=UTC)
ROWS = 12


def rows(time_format: str = "%Y-%m-%d %H:%M:%S") -> list[list[str]]:
    """Good one-minute bars, as text."""
    return [
        [
            (START + timedelta(minutes=i)).strftime(time_format),
            f"{100 + i}.25",
            f"{103 + i}.5",
            f"{99 + i}",
            f"{101 + i}",
        ]
        for i in range(ROWS)
    ]


def text(table: list[list[str]], header: str = "timestamp,open,high,low,close") -> str:
    return "\n".join([header, *(",".join(row) for row in table)]) + "\n"


def write(folder: Path, content: str | bytes, name: str = "bars.csv") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def refusal(path: str, timeframe: Timeframe | None = None) -> str:
    """The one line with which a file is refused, without its own name."""
    with pytest.raises(UserError) as raised:
        read_bars(path, INSTRUMENT, timeframe)
    line = str(raised.value)
    assert line.startswith(path)
    assert "\n" not in line
    assert line.count(": ") >= 2, "it names no remedy"
    return line.removeprefix(path)


# --- the contract ---------------------------------------------------------------------------------


def table_of(bars: Series) -> pl.DataFrame:
    """Bars as a table whose times are text."""
    times = [from_us(int(open_us)).isoformat() for open_us in bars["open_us"]]
    return pl.DataFrame({"time": times} | {name: column for name, column in bars.items() if name != "open_us"})


@pytest.fixture(params=["bars.csv", "bars.csv.gz", "bars.parquet"])
def write_bars(request: pytest.FixtureRequest, tmp_path: Path) -> Write:
    """Writes each time to a new file of the same kind."""
    count = itertools.count()

    def write_bars(bars: Series) -> str:
        name, table = f"{next(count)}-{request.param}", table_of(bars)
        if name.endswith(".parquet"):
            time = pl.Series("time", bars["open_us"].astype(np.int64)).cast(pl.Datetime("us", "UTC"))
            table.with_columns(time).write_parquet(tmp_path / name)
            return str(tmp_path / name)
        content = table.write_csv().encode()
        return write(tmp_path, gzip.compress(content) if name.endswith(".gz") else content, name)

    return write_bars


@pytest.mark.parametrize("check", BAR_SOURCE_CHECKS, ids=lambda check: check.__name__)
def test_contract(write_bars: Write, check: Callable[[BarSource, Write], None]) -> None:
    check(read_blocks, write_bars)


Whole = Callable[[str, Instrument, Timeframe | None], tuple[BarArrays, FileReport]]
"""A source that gives all bars at once."""


def in_one_block(read: Whole) -> BarSource:
    def blocks(
        path: str,
        instrument: Instrument,
        timeframe: Timeframe | None = None,
        *,
        reading: Reading | None = None,
        until_us: int = EVER_US,
    ) -> Generator[Series, None, FileReport]:
        bars, report = read(path, instrument, timeframe)
        yield {"open_us": bars.open_us} | {name: getattr(bars, name)[:, 0] for name in BAR_COLUMNS}
        return report

    return blocks


def rounding(path: str, instrument: Instrument, timeframe: Timeframe | None = None) -> tuple[BarArrays, FileReport]:
    """Reads prices as float32."""
    bars, report = read_bars(path, instrument, timeframe)
    return replace(bars, close=bars.close.astype(np.float32).astype(np.float64)), report


def inventive(path: str, instrument: Instrument, timeframe: Timeframe | None = None) -> tuple[BarArrays, FileReport]:
    """Takes a volume that is not there for none."""
    bars, report = read_bars(path, instrument, timeframe)
    return replace(bars, volume=np.nan_to_num(bars.volume)), report


def hasty(path: str, instrument: Instrument, timeframe: Timeframe | None = None) -> tuple[BarArrays, FileReport]:
    """Leaves the last bar out."""
    bars, report = read_bars(path, instrument, timeframe)
    return bars.slice(0, len(bars) - 1), report


def timeless(path: str, instrument: Instrument, timeframe: Timeframe | None = None) -> tuple[BarArrays, FileReport]:
    """Knows no calendar."""
    return read_bars(path, instrument.model_copy(update={"calendar": "continuous"}), timeframe)


def stubborn(path: str, instrument: Instrument, timeframe: Timeframe | None = None) -> tuple[BarArrays, FileReport]:
    """Infers the timeframe though it was given."""
    return read_bars(path, instrument)


def curt(path: str, instrument: Instrument, timeframe: Timeframe | None = None) -> tuple[BarArrays, FileReport]:
    """Refuses without a remedy."""
    try:
        return read_bars(path, instrument, timeframe)
    except UserError as error:
        raise UserError(str(error).rsplit(": ", 1)[0]) from error


def lenient(path: str, instrument: Instrument, timeframe: Timeframe | None = None) -> tuple[BarArrays, FileReport]:
    """Reads volumes below zero."""
    table = pl.read_csv(path)
    if "volume" in table.columns:
        table.with_columns(pl.col("volume").abs()).write_csv(path)
    return read_bars(path, instrument, timeframe)


@pytest.mark.parametrize("defect", [rounding, inventive, hasty, timeless, stubborn, curt, lenient])
def test_the_contract_finds_defects(tmp_path: Path, defect: Whole) -> None:
    count = itertools.count()

    def write_csv(bars: Series) -> str:
        return write(tmp_path, table_of(bars).write_csv(), f"{next(count)}.csv")

    with pytest.raises(AssertionError):
        check_bar_source(in_one_block(defect), write_csv)


# --- good files -----------------------------------------------------------------------------------


def test_a_plain_file(tmp_path: Path) -> None:
    bars, report = read_bars(write(tmp_path, text(rows())), INSTRUMENT)

    assert bars.instruments == ("x:A",)
    assert bars.open_us.tolist() == [to_us(START + timedelta(minutes=i)) for i in range(ROWS)]
    assert bars.close_us.tolist() == [to_us(START + timedelta(minutes=i + 1)) for i in range(ROWS)]
    assert bars.open[:, 0].tolist() == [100.25 + i for i in range(ROWS)]
    assert bars.high[:, 0].tolist() == [103.5 + i for i in range(ROWS)]
    assert bars.low[:, 0].tolist() == [99 + i for i in range(ROWS)]
    assert bars.close[:, 0].tolist() == [101 + i for i in range(ROWS)]
    assert np.isnan(bars.volume).all()
    assert not bars.funding_rate.any()
    assert bars.present.all()
    assert report.columns == {name: name for name in ("open", "high", "low", "close")} | {"time": "timestamp"}
    assert (report.timeframe, report.rows, report.gaps) == (Timeframe.M1, ROWS, 0)
    assert (report.first, report.last) == (START, START + timedelta(minutes=ROWS - 1))
    assert (report.time_format, report.zone, report.ignored) == ("ISO 8601", "none, read as UTC", ())


@pytest.mark.parametrize("time", ["timestamp", "Time", "DATE", "datetime", "Open Time", "open_time", "ts", " Time "])
def test_names_of_the_time(tmp_path: Path, time: str) -> None:
    _, report = read_bars(write(tmp_path, text(rows(), f"{time},O,h,L,c")), INSTRUMENT)
    assert report.columns == {"time": time, "open": "O", "high": "h", "low": "L", "close": "c"}


@pytest.mark.parametrize("volume", ["Volume", "vol", "V"])
def test_volume_and_funding(tmp_path: Path, volume: str) -> None:
    table = [[*row, "12.5", "1e-4" if i == 3 else ""] for i, row in enumerate(rows())]
    header = f"ts,open,high,low,close,{volume},funding_rate"
    bars, report = read_bars(write(tmp_path, text(table, header)), INSTRUMENT)
    assert (bars.volume == 12.5).all()
    assert bars.funding_rate[:, 0].tolist() == [1e-4 if i == 3 else 0.0 for i in range(ROWS)]
    assert report.columns["volume"] == volume


@pytest.mark.parametrize(
    ("time_format", "name", "zone", "offset_h"),
    [
        ("%Y-%m-%dT%H:%M:%S", "ISO 8601", "none, read as UTC", 0),
        ("%Y-%m-%dT%H:%M", "ISO 8601", "none, read as UTC", 0),
        ("%Y-%m-%dT%H:%M:%SZ", "ISO 8601", "UTC", 0),
        ("%Y-%m-%d %H:%M:%S.000000+00:00", "ISO 8601", "UTC", 0),
        ("%Y-%m-%d %H:%M:%S UTC", "ISO 8601", "UTC", 0),
        ("%Y-%m-%dT%H:%M:%S+02:00", "ISO 8601", "+02:00", -2),
        ("%Y-%m-%dT%H:%M:%S+0200", "ISO 8601", "+02:00", -2),
        ("%Y-%m-%dT%H:%M:%S-05", "ISO 8601", "-05:00", 5),
        ("%d.%m.%Y %H:%M:%S.000", "DD.MM.YYYY", "none, read as UTC", 0),
    ],
)
def test_iso_times(tmp_path: Path, time_format: str, name: str, zone: str, offset_h: int) -> None:
    bars, report = read_bars(write(tmp_path, text(rows(time_format))), INSTRUMENT)
    assert (report.time_format, report.zone) == (name, zone)
    assert report.first == START + timedelta(hours=offset_h)
    assert np.all(np.diff(bars.open_us) == Timeframe.M1.us)


@pytest.mark.parametrize(
    ("unit", "factor"), [("s", 1), ("s", 1.0), ("ms", 1000), ("us", 1_000_000), ("ns", 1_000_000_000)]
)
def test_epoch_times(tmp_path: Path, unit: str, factor: float) -> None:
    table = [[str(int(START.timestamp() + 60 * i) * factor), *row[1:]] for i, row in enumerate(rows())]
    bars, report = read_bars(write(tmp_path, text(table)), INSTRUMENT)
    assert (report.time_format, report.zone) == (f"epoch {unit}", "UTC")
    assert bars.open_us.tolist() == [to_us(START) + i * Timeframe.M1.us for i in range(ROWS)]


def test_dates_alone(tmp_path: Path) -> None:
    table = [[f"1969-12-{20 + i}", *row[1:]] for i, row in enumerate(rows())]
    bars, report = read_bars(write(tmp_path, text(table)), INSTRUMENT)
    assert (report.timeframe, report.time_format) == (Timeframe.D1, "date")
    assert report.first == datetime(1969, 12, 20, tzinfo=UTC)
    assert bars.close_us[-1] == 0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(b"", b"\n\n \n", id="blank lines at the end"),
        pytest.param(b"\xef\xbb\xbf", b"", id="byte order mark"),
    ],
)
def test_what_surrounds_the_table_does_no_harm(tmp_path: Path, before: bytes, after: bytes) -> None:
    content = before + text(rows()).encode() + after
    plain, _ = read_bars(write(tmp_path, content), INSTRUMENT)
    windows, _ = read_bars(write(tmp_path, content.replace(b"\n", b"\r\n")), INSTRUMENT)
    zipped, _ = read_bars(write(tmp_path, gzip.compress(content), "bars.CSV.gz"), INSTRUMENT)
    assert len(plain) == len(windows) == len(zipped) == ROWS
    assert plain.close.tolist() == windows.close.tolist() == zipped.close.tolist()


@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_parquet(tmp_path: Path, zone: str | None, unit: str) -> None:
    times = [START + timedelta(hours=i) for i in range(ROWS)]
    column = pl.Series("Datetime", times).dt.cast_time_unit(unit).dt.convert_time_zone(zone or "UTC")  # type: ignore[arg-type]
    table = pl.DataFrame(
        {
            "Datetime": column if zone else column.dt.replace_time_zone(None),
            **{name: [float(row[i]) for row in rows()] for i, name in enumerate("OHLC", start=1)},
            "volume": range(ROWS),
        }
    )
    table.write_parquet(tmp_path / "bars.parquet")
    bars, report = read_bars(str(tmp_path / "bars.parquet"), INSTRUMENT)
    assert bars.open_us.tolist() == [to_us(time) for time in times]
    assert bars.volume[:, 0].tolist() == list(range(ROWS))
    assert (report.timeframe, report.time_format) == (Timeframe.H1, "Parquet timestamp")
    assert report.zone == (zone or "none, read as UTC")


def test_parquet_with_dates_and_with_numbers(tmp_path: Path) -> None:
    prices = {name: [float(row[i]) for row in rows()] for i, name in enumerate(("open", "high", "low", "close"), 1)}
    days = [(START + timedelta(days=i)).date() for i in range(ROWS)]
    pl.DataFrame({"date": days, **prices}).write_parquet(tmp_path / "d.parquet")
    assert read_bars(str(tmp_path / "d.parquet"), INSTRUMENT)[1].time_format == "date"
    numbers = [int(START.timestamp() * 1000) + i * 60_000 for i in range(ROWS)]
    pl.DataFrame({"ts": numbers, **prices}).write_parquet(tmp_path / "n.parquet")
    assert read_bars(str(tmp_path / "n.parquet"), INSTRUMENT)[1].time_format == "epoch ms"


def test_a_given_timeframe_may_have_many_gaps(tmp_path: Path) -> None:
    table = [row for i, row in enumerate(rows()) if i % 3 != 2]
    table[-1][0] = "2022-01-03 00:40:00"
    bars, report = read_bars(write(tmp_path, text(table)), INSTRUMENT, Timeframe.M1, min_rows=8)
    assert len(bars) == 8
    assert report.gaps == 4


# --- refused files --------------------------------------------------------------------------------


def test_what_is_no_file(tmp_path: Path) -> None:
    assert refusal(str(tmp_path / "none.csv")) == ": there is no such file: check the path"
    (tmp_path / "folder.csv").mkdir()
    assert refusal(str(tmp_path / "folder.csv")) == ": is a directory: name one file"
    assert "unknown ending" in refusal(write(tmp_path, text(rows()), "bars.xlsx"))
    assert "there is no such file" in refusal(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"\n\n", "is empty"),
        ("a.csv.gz", gzip.compress(b""), "is empty"),
        ("a.csv", b"time,open,high,low,close\n", "has no rows"),
        ("a.csv", bytes(range(256)) * 4, "is not text"),
        ("a.csv", gzip.compress(b"time,open,high,low,close\n"), "is not text"),
        ("a.csv", b"PK\x03\x04\0\0", "is not text"),
        ("a.csv", b"\0\0\0\0\n\0\0\0", "is not text"),
        (
            "a.csv",
            b"lorem ipsum dolor\nsit amet\n",
            "its first line is no header: name time, open, high, low, close in it",
        ),
        ("a.csv", b"<html>\n<body>Not found</body>\n</html>\n", "its first line is no header"),
        ("a.csv.gz", b"time,open,high,low,close\n", "is broken gzip"),
        ("a.csv.gz", gzip.compress(text([["x"] * 5] * 99).encode())[:-20], "is broken gzip"),
        ("a.csv.gz", gzip.compress(bytes(500))[:12] + b"\xff" * 30, "is broken gzip"),
        ("a.parquet", b"time,open,high,low,close\n", "is not a Parquet file"),
        ("a.parquet", b"", "is not a Parquet file"),
        ("a.parquet", b"PAR1" + bytes(100) + b"PAR1", "is not a Parquet file"),
    ],
)
def test_garbage(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    assert message in refusal(write(tmp_path, content, name))


def test_columns_that_are_missing_or_doubtful(tmp_path: Path) -> None:
    table = rows()
    assert "no column for open, low among 'time', 'bid', 'high', 'x', 'close'" in refusal(
        write(tmp_path, text(table, "time,bid,high,x,close"))
    )
    late = [[(START + timedelta(days=i)).isoformat(), *row] for i, row in enumerate(table)]
    assert "columns Date and Time could each be the time, and say 2022-01-04" in refusal(
        write(tmp_path, text(late, "Date,Time,open,high,low,close"))
    )
    assert "columns close and Close could each be the close" in refusal(
        write(tmp_path, text([[*row, "1"] for row in table], "time,open,high,low,close,Close"))
    )


@pytest.mark.parametrize("column", ["symbol", "Ticker", "tic", " ISIN "])
def test_several_instruments_in_one_file_are_never_one_series(tmp_path: Path, column: str) -> None:
    """Neither one after the other, which looks unsorted, nor in turn, which looks fine."""
    header = f"timestamp,open,high,low,close,{column}"
    in_turn = [[*row, "AB"[i % 2]] for i, row in enumerate(rows())]
    for table in (in_turn, [[*row, symbol] for symbol in "AB" for row in rows()]):
        line = refusal(write(tmp_path, text(table, header)))
        assert line.startswith(f": column {column} names 2 instruments (A, B): name one by FILE#SYMBOL, or give a file")
    _, report = read_bars(write(tmp_path, text([[*row, "A"] for row in rows()], header)), INSTRUMENT)
    assert report.ignored == (column,)


def test_one_instrument_of_a_file(tmp_path: Path) -> None:
    header = "timestamp,open,high,low,close,symbol"
    other = [[time, *(f"{float(price) * 2}" for price in prices)] for time, *prices in rows()]
    path = write(
        tmp_path, text([row for a, b in zip(rows(), other, strict=True) for row in ([*a, "A"], [*b, "B/C"])], header)
    )
    for symbol, table in (("A", rows()), ("B/C", other)):
        bars, report = read_bars(f"{path}#{symbol}", INSTRUMENT)
        assert bars.close[:, 0].tolist() == [float(row[4]) for row in table]
        assert (report.rows, report.ignored) == (ROWS, ())
    assert "column symbol names 2 instruments (A, B/C): D is none of them" in refusal(f"{path}#D")
    with pytest.raises(SeveralInstruments) as raised:
        read_bars(path, INSTRUMENT)
    assert raised.value.symbols == ("A", "B/C")
    broken = [[*row, symbol] for symbol in "AB" for row in rows()]
    broken[ROWS + 2][2] = "x"
    path = write(tmp_path, text(broken, header))
    assert refusal(f"{path}#B").startswith(f", line {ROWS + 4}: high 'x' cannot be parsed"), (
        "the line in the whole file"
    )
    assert "has no column of instruments" in refusal(write(tmp_path, text(rows())) + "#A")


def test_too_few_rows(tmp_path: Path) -> None:
    path = write(tmp_path, text(rows()[:9]))
    assert refusal(path) == ": 9 rows of bars, fewer than 10: give a longer file"
    assert len(read_bars(path, INSTRUMENT, min_rows=9)[0]) == 9


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"open": "abc"}, "open 'abc' cannot be parsed"),
        ({"open": "1,5"}, "6 cells under a header of 5"),
        ({"close": ""}, "close is empty"),
        ({"high": "NaN"}, "high is nan"),
        ({"high": "inf"}, "high is inf"),
        ({"low": "-inf"}, "low is -inf"),
        ({"low": "0"}, "low 0.0 is not positive"),
        ({"close": "-3"}, "close -3.0 is not positive"),
        ({"high": "98.5", "low": "99.5"}, "high 98.5 is below low 99.5"),
        ({"open": "103.75", "high": "103.5", "low": "99"}, "open 103.75 lies outside [low 99.0, high 103.5]"),
        (
            {"open": "100", "close": "98.75", "high": "103.5", "low": "99"},
            "close 98.75 lies outside [low 99.0, high 103.5]",
        ),
        ({"time": "2022-01-03 00:03:00"}, "2022-01-03T00:03:00+00:00 comes twice"),
        ({"time": "2022-01-03 00:01:00"}, "2022-01-03T00:01:00+00:00 comes after a later time"),
        (
            {"time": "2022-01-03 00:03:30"},
            "2022-01-03T00:03:30+00:00 is no open time of a 1m bar here: it is 0:00:30 after the row before "
            "(2 such rows)",
        ),
        ({"time": "03.01.2022 00:04"}, "time '03.01.2022 00:04' cannot be parsed"),
        ({"time": "2022-13-03 00:04:00"}, "time '2022-13-03 00:04:00' cannot be parsed"),
        ({"time": "2022-01-03 24:04:00"}, "time '2022-01-03 24:04:00' cannot be parsed"),
        ({"time": "1641168240"}, "time '1641168240' cannot be parsed"),
        ({"time": ""}, "time is empty"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, cells: dict[str, str], message: str) -> None:
    names = ["time", "open", "high", "low", "close"]
    table = rows()
    for name, cell in cells.items():
        table[4][names.index(name)] = cell
    assert refusal(write(tmp_path, text(table))).startswith(f", line 6: {message}: ")


def test_a_dotted_date_that_does_not_exist_and_one_that_is_not_dotted(tmp_path: Path) -> None:
    for cell in ("31.02.2022 00:03", "2022-01-03 00:03"):
        table = rows("%d.%m.%Y %H:%M")
        table[4][0] = cell
        assert refusal(write(tmp_path, text(table))).startswith(f", line 6: time {cell!r} cannot be parsed: ")


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        ("-1", ", line 4: volume -1.0 is negative (2 such rows)"),
        ("nan", ", line 4: volume is nan (2 such rows)"),
        ("", ", line 4: volume is empty (2 such rows)"),
        ("many", ", line 4: volume 'many' cannot be parsed (2 such rows)"),
    ],
)
def test_a_bad_volume(tmp_path: Path, volume: str, message: str) -> None:
    table = [[*row, volume if i in (2, 7) else "5"] for i, row in enumerate(rows())]
    assert refusal(write(tmp_path, text(table, "time,open,high,low,close,volume"))).startswith(message)


def test_a_blank_line_between_rows(tmp_path: Path) -> None:
    lines = text(rows()).splitlines()
    lines.insert(3, "")
    assert ", line 4: " in refusal(write(tmp_path, "\n".join(lines)))


def test_a_row_cut_short(tmp_path: Path) -> None:
    table = rows()
    table[-1] = table[-1][:3]
    assert refusal(write(tmp_path, text(table))).startswith(f", line {ROWS + 1}: low is empty")


def test_a_very_long_cell_is_cut(tmp_path: Path) -> None:
    table = rows()
    table[0][1] = '"' + "x\n" * 5000 + '"'
    assert len(refusal(write(tmp_path, text(table)))) < 150


@pytest.mark.parametrize(
    ("zones", "message"),
    [
        (["Z"] * 5 + [""] * 7, ", line 7: the zone changes from 'Z' to none (7 such rows)"),
        ([""] * 5 + ["+01:00"] + [""] * 6, ", line 7: the zone changes from none to '+01:00'"),
    ],
)
def test_mixed_zones(tmp_path: Path, zones: list[str], message: str) -> None:
    table = [[row[0] + zone, *row[1:]] for row, zone in zip(rows(), zones, strict=True)]
    line = refusal(write(tmp_path, text(table)))
    assert line.startswith(message)
    assert line.endswith("name the zone in all rows, or in none")


def test_two_spellings_of_one_zone_are_one_zone(tmp_path: Path) -> None:
    table = [[row[0] + ("Z" if i % 2 else "+00:00"), *row[1:]] for i, row in enumerate(rows())]
    assert read_bars(write(tmp_path, text(table)), INSTRUMENT)[1].zone == "UTC"


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (
            [1641168000 + 60 * i for i in range(11)] + [1641168660000],
            ", line 13: time 1641168660000 is in another unit",
        ),
        ([90220103 + i for i in range(12)], ", line 2: time 90220103 is too small for an epoch (12 such rows)"),
        ([1641168000000 + 60_000 * i - 1 for i in range(12)], ", line 2: 2022-01-02T23:59:59.999000+00:00 is no open"),
    ],
)
def test_numbers_that_are_no_open_times(tmp_path: Path, times: list[int], message: str) -> None:
    table = [[str(time), *row[1:]] for time, row in zip(times, rows(), strict=True)]
    assert refusal(write(tmp_path, text(table))).startswith(message)


def test_a_timeframe_that_does_not_fit(tmp_path: Path) -> None:
    minutes = write(tmp_path, text(rows()))
    assert refusal(minutes, Timeframe.M5).startswith(", line 3: 2022-01-03T00:01:00+00:00 is no open time of a 5m bar")
    hours = [[(START + timedelta(hours=i)).isoformat(), *row[1:]] for i, row in enumerate(rows())]
    path = write(tmp_path, text(hours))
    assert refusal(path, Timeframe.M1) == ": no two rows are 1m apart: give the right timeframe"
    twos = [[(START + timedelta(minutes=2 * i)).isoformat(), *row[1:]] for i, row in enumerate(rows())]
    assert ": most rows are 0:02:00 apart: give bars of 1s, 5s, 15s, 30s, 1m" in refusal(write(tmp_path, text(twos)))


def test_parquet_rows_are_counted_from_one(tmp_path: Path) -> None:
    times = [datetime(2022, 1, 3, i, tzinfo=timezone(timedelta(0))) for i in range(ROWS)]
    prices = {name: [1.0] * ROWS for name in ("open", "high", "low", "close")}
    path = str(tmp_path / "bars.parquet")
    pl.DataFrame({"time": times, **prices, "volume": [0.0] * 4 + [-1.0] * 8}).write_parquet(path)
    assert refusal(path) == ", row 5: volume -1.0 is negative (8 such rows): correct it at its source"
    pl.DataFrame({"time": times, **prices, "volume": [0.0] * 4 + [None] * 8}).write_parquet(path)
    assert refusal(path).startswith(", row 5: volume is empty (8 such rows)")
    pl.DataFrame({"time": [None, *times[1:]], **prices}).write_parquet(path)
    assert refusal(path).startswith(", row 1: time is empty")
    pl.DataFrame({"time": times, **prices, "volume": [True] * ROWS}).write_parquet(path)
    assert refusal(path).startswith(": volume is a column of Boolean")
    pl.DataFrame({"time": [t.time() for t in times], **prices}).write_parquet(path)
    assert refusal(path).startswith(": time is a column of Time")


def test_parquet_without_rows(tmp_path: Path) -> None:
    pl.DataFrame({name: [] for name in ("time", "open", "high", "low", "close")}).write_parquet(tmp_path / "a.parquet")
    assert refusal(str(tmp_path / "a.parquet")) == ": has no rows: give a longer file"
    pl.DataFrame().write_parquet(tmp_path / "b.parquet")
    assert refusal(str(tmp_path / "b.parquet")).startswith(": its first line is no header: name time, open")


def good_files() -> dict[str, bytes]:
    content = text(rows("%Y-%m-%dT%H:%M:%SZ")).encode()
    parquet = io.BytesIO()
    pl.read_csv(content).write_parquet(parquet)
    return {"a.csv": content, "a.csv.gz": gzip.compress(content), "a.parquet": parquet.getvalue()}


@given(st.sampled_from(sorted(good_files())), st.data())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_damaged_file_is_read_or_refused_by_one_line(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    content = bytearray(good_files()[name])
    for _ in range(data.draw(st.integers(1, 3))):
        at, cut = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, 8))
        content[at : at + cut] = data.draw(st.binary(max_size=8) | st.text(max_size=8).map(str.encode))
    path = write(tmp_path_factory.mktemp("damaged"), bytes(content), name)
    try:
        bars, _ = read_bars(path, INSTRUMENT, min_rows=2)
    except UserError as error:
        refused = str(error)
    else:
        refused = ""
        assert np.isfinite(bars.close).all()
    assert "\n" not in refused


def test_a_panic_of_the_parser_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(_: Path, **options: object) -> pl.LazyFrame:
        raise pl.exceptions.PanicException("assertion failed")

    monkeypatch.setattr(pl, "scan_parquet", panic)
    assert refusal(write(tmp_path, b"PAR1", "a.parquet")).startswith(": is not a Parquet file: ")


# --- real files -----------------------------------------------------------------------------------


def decimals(path: Path, column: str) -> list[float]:
    """A column as Python itself reads it."""
    with gzip.open(path, "rt") as lines:
        return [float(row[column]) for row in csv.DictReader(lines)]


@needs_data
def test_crypto_without_zone() -> None:
    path = DATA / "btc-perp-1m-2022-01.csv.gz"
    bars, report = read_bars(str(path), INSTRUMENT)
    assert (report.timeframe, report.rows, report.gaps) == (Timeframe.M1, 45_031, 0)
    assert (report.zone, report.time_format) == ("none, read as UTC", "ISO 8601")
    assert report.first == datetime(2021, 12, 31, 23, 1, tzinfo=UTC)
    assert report.last == datetime(2022, 2, 1, 5, 31, tzinfo=UTC)
    assert bars.close[:, 0].tolist() == decimals(path, "close"), "a price lost bits"
    assert bars.volume[:, 0].tolist() == decimals(path, "volume")


@needs_data
def test_foreign_exchange_with_weekends() -> None:
    path = str(DATA / "gbpusd-1m-bid-2012-02.csv.gz")
    bars, report = read_bars(path, Instrument(id="fxcm:GBP/USD", calendar="weekdays"))
    assert (report.timeframe, report.rows, report.zone) == (Timeframe.M1, 30_117, "UTC")
    assert np.isnan(bars.volume).all()
    continuous = read_bars(path, INSTRUMENT)[1].gaps
    assert continuous - report.gaps == 4, "February 2012 had four weekends"


@needs_data
def test_stocks_with_adjusted_closes() -> None:
    path = DATA / "dj30-daily" / "AAPL.csv.gz"
    bars, report = read_bars(str(path), Instrument(id="nasdaq:AAPL", calendar="sessions"))
    assert report.timeframe == Timeframe.D1
    assert report.ignored == ("Adj Close",)
    assert report.columns["close"] == "Close"
    assert report.gaps == 0
    assert bars.close[:, 0].tolist() == decimals(path, "Close")


@needs_data
@pytest.mark.parametrize(("stock", "rows"), [("JNJ", 1986), ("JPM", 959)])
def test_stocks_whose_opens_are_zero(stock: str, rows: int) -> None:
    line = refusal(str(DATA / "dj30-daily" / f"{stock}.csv.gz"))
    assert line.startswith(f", line 2: open 0.0 is not positive ({rows} such rows so far): ")


# --- files of any size ----------------------------------------------------------------------------


@pytest.mark.parametrize("block_bytes", [100, 450, 1_000, 10_000])
@pytest.mark.parametrize("name", ["bars.csv", "bars.csv.gz", "bars.parquet"])
def test_a_file_in_blocks_is_the_file_at_once(tmp_path: Path, name: str, block_bytes: int) -> None:
    table = [
        [(START + timedelta(minutes=i + 30 * (i > 57))).isoformat(), f"{i % 7 + 1}.5", "9", "1", f"{i % 5 + 1}"]
        for i in range(120)
    ]
    content = text(table, "time,open,high,low,close").rstrip().encode()
    parquet = io.BytesIO()
    pl.read_csv(content).write_parquet(parquet)
    kinds = {"bars.csv": content, "bars.csv.gz": gzip.compress(content), "bars.parquet": parquet.getvalue()}
    path = write(tmp_path, kinds[name], name)

    bars, report = read_bars(path, INSTRUMENT)
    parts: list[Series] = []

    def counted() -> Generator[Series, None, FileReport]:
        found = read_blocks(path, INSTRUMENT, block_bytes=block_bytes)
        while True:
            try:
                parts.append(next(found))
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            yield parts[-1]

    in_blocks, the_same = whole(counted(), INSTRUMENT)
    assert replace(the_same, remarks=()) == replace(report, remarks=())  # a jump is unusual in its block
    assert report.gaps == 1
    for name in (*BAR_COLUMNS, "open_us", "present"):
        np.testing.assert_array_equal(getattr(in_blocks, name), getattr(bars, name))
    assert len(parts) > 1 or block_bytes == 10_000


@pytest.mark.parametrize(
    ("row", "cells", "message"),
    [
        (70, {1: "x"}, ", line 72: open 'x' cannot be parsed"),
        (70, {1: "-1"}, ", line 72: open -1.0 is not positive"),
        (70, {1: "1,5"}, ", line 72: 6 cells under a header of 5"),
        (70, {0: "2022-01-03 00:00:00"}, ", line 72: 2022-01-03T00:00:00+00:00 comes after a later time"),
        (110, {0: "2022-01-03 01:50:00Z"}, ", line "),
    ],
)
def test_a_bad_row_of_a_later_block_is_named_by_its_line(
    tmp_path: Path, row: int, cells: dict[int, str], message: str
) -> None:
    table = [[(START + timedelta(minutes=i)).strftime("%Y-%m-%d %H:%M:%S"), "2", "9", "1", "2"] for i in range(120)]
    for column, cell in cells.items():
        table[row][column] = cell
    path = write(tmp_path, text(table))
    with pytest.raises(UserError) as raised:
        list(read_blocks(path, INSTRUMENT, block_bytes=700))
    assert str(raised.value).removeprefix(path).startswith(message)


def test_formats_that_change_from_block_to_block_are_refused(tmp_path: Path) -> None:
    table = [[(START + timedelta(minutes=i)).isoformat(), "2", "9", "1", "2"] for i in range(120)]
    for row in table[60:]:
        row[0] = row[0].replace("+00:00", "")
    with pytest.raises(UserError, match=r"the times change from UTC to none|the zone changes from '\+00:00' to none"):
        list(read_blocks(write(tmp_path, text(table)), INSTRUMENT, block_bytes=300))


def test_one_instrument_of_a_file_in_blocks(tmp_path: Path) -> None:
    header = "timestamp,open,high,low,close,symbol"
    table = [[*row, symbol] for symbol in ("A", "B") for row in rows()]
    path = write(tmp_path, text(table, header))
    found = whole(read_blocks(f"{path}#B", INSTRUMENT, block_bytes=150), INSTRUMENT)
    assert found[1] == replace(read_bars(f"{path}#B", INSTRUMENT)[1])
    assert found[0].close[:, 0].tolist() == [float(row[4]) for row in rows()]
    with pytest.raises(SeveralInstruments) as raised:
        list(read_blocks(path, INSTRUMENT, block_bytes=150))
    assert raised.value.symbols == ("A", "B")


def test_L4_a_file_outside_of_the_root_is_refused(tmp_path: Path) -> None:
    inside, outside = tmp_path / "bars", tmp_path / "secrets"
    inside.mkdir()
    outside.mkdir()
    secret = write(outside, text(rows()))
    (inside / "link.csv").symlink_to(secret)
    good = write(inside, text(rows()))
    for path in (secret, str(inside / "link.csv"), f"{inside}/../secrets/bars.csv", f"{secret}#A"):
        with pytest.raises(
            UserError, match=r"lies outside of .*/bars: put it there, or name its folder by INGEST_FILE"
        ):
            list(read_blocks(path, INSTRUMENT, root=inside))
    assert len(list(read_blocks(good, INSTRUMENT, root=inside))) == 1


def test_L4_a_gzip_bomb_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, gzip.compress(text(rows()).encode() + b"\n" * 5_000_000), "bomb.csv.gz")
    with pytest.raises(UserError, match=r"bomb\.csv\.gz: holds more than 100,000 bytes when it is unpacked: split it"):
        list(read_blocks(path, INSTRUMENT, block_bytes=10_000, unpacked_bytes=100_000))
    path = write(tmp_path, gzip.compress(b"x" * 30_000_000), "line.csv.gz")
    with pytest.raises(UserError, match=r"line\.csv\.gz: has [0-9,]+ bytes without a line of bars"):
        list(read_blocks(path, INSTRUMENT))


def test_L4_what_is_no_header_is_not_shown(tmp_path: Path) -> None:
    path = write(tmp_path, "root:x:0:0:root:/root:/bin/bash\nsecret\n")
    assert refusal(path) == ": its first line is no header: name time, open, high, low, close in it"


def test_M8_a_row_that_has_not_come_yet_is_refused_by_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, text(rows()))
    last_us = to_us(START + timedelta(minutes=ROWS - 1))
    assert len(list(read_blocks(path, INSTRUMENT, until_us=last_us))) == 1
    with pytest.raises(UserError, match=rf"line {ROWS + 1}: 2022-01-03T00:11:00\+00:00 has not come yet: correct its"):
        list(read_blocks(path, INSTRUMENT, until_us=last_us - 1))
