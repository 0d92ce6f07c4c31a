"""The contract of a source of bars: `check_bar_source`. It raises `AssertionError` and needs no test framework."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.contracts.steps import fresh
from tradeloop.common.errors import UserError
from tradeloop.common.market import BAR_COLUMNS, BAR_PRICES, BarArrays, Instrument, Series, Timeframe, align, from_us
from tradeloop.ingest.ports import BarSource, FileReport, whole

Write = Callable[[Series], str]
"""Writes bars as they stand, broken ones too, in the form that the source reads, and gives the path."""

_INSTRUMENT = Instrument(id="check:A")
_START_US = 1_704_326_400_000_000
"""2024-01-04, a Thursday, UTC."""
_BARS = 48


def check_bar_source(read: BarSource, write: Write) -> None:
    """Run all of `BAR_SOURCE_CHECKS`."""
    for check in BAR_SOURCE_CHECKS:
        check(read, write)


def bars_come_back_to_the_bit(read: BarSource, write: Write) -> None:
    sent = _bars(Timeframe.M1)
    bars, _ = _read(read, write(sent), _INSTRUMENT)
    expected = align((_INSTRUMENT.id,), Timeframe.M1, [sent])
    for name in ("instruments", "open_us", "close_us", "present", *BAR_COLUMNS):
        found, wanted = getattr(bars, name), getattr(expected, name)
        assert np.array_equal(found, wanted), f"bars come back with another {name}"
    assert not bars.extra, f"bars come back with {', '.join(bars.extra)}, which nobody gave them"


def what_a_file_does_not_say_is_not_invented(read: BarSource, write: Write) -> None:
    sent = {name: column for name, column in _bars(Timeframe.M1).items() if name not in {"volume", "funding_rate"}}
    bars, report = _read(read, write(sent), _INSTRUMENT)
    assert np.isnan(bars.volume).all(), "bars without a volume have one"
    assert not bars.funding_rate.any(), "bars without a funding rate have one"
    assert not {"volume", "funding_rate"} & report.columns.keys(), "the report names columns that are not there"


def the_report_says_what_was_found(read: BarSource, write: Write) -> None:
    sent = _bars(Timeframe.H1)
    path = write(sent)
    _, report = _read(read, path, _INSTRUMENT)
    assert report.path == path, f"the report of {path} names {report.path}"
    assert report.columns.keys() == {"time", *BAR_PRICES, "volume", "funding_rate"}, "the report lacks a column"
    assert (report.rows, report.gaps) == (_BARS, 0), f"of {_BARS} rows without a gap the report says otherwise"
    span = (from_us(int(sent["open_us"][0])), from_us(int(sent["open_us"][-1])))
    assert (report.first, report.last) == span, "the report names other times than those of the first and last bar"


def the_timeframe_is_inferred(read: BarSource, write: Write) -> None:
    for timeframe in (Timeframe.M1, Timeframe.H1, Timeframe.D1):
        bars, report = _read(read, write(_bars(timeframe)), _INSTRUMENT)
        assert report.timeframe is timeframe, f"bars of {timeframe} are taken for bars of {report.timeframe}"
        closes = bars.open_us + timeframe.us
        assert np.array_equal(bars.close_us, closes), f"bars of {timeframe} close at another time"


def a_given_timeframe_may_have_many_gaps(read: BarSource, write: Write) -> None:
    sent = _bars(Timeframe.M1)
    few = {name: column[np.arange(_BARS) % 8 < 2] for name, column in sent.items()}
    few["open_us"] = few["open_us"] + np.arange(len(few["open_us"])) // 2 * Timeframe.H1.us
    bars, report = _read(read, write(few), _INSTRUMENT, Timeframe.M1)
    assert report.timeframe is Timeframe.M1, "the timeframe that was given is not taken"
    assert np.array_equal(bars.open_us, few["open_us"]), "bars between gaps are lost, or come at other times"
    assert report.gaps == len(few["open_us"]) // 2 - 1, f"of the gaps {report.gaps} are counted"


def gaps_are_those_of_the_calendar(read: BarSource, write: Write) -> None:
    whole = _bars(Timeframe.H1)
    open_us = whole["open_us"]
    # Until Friday 22:00, then from Sunday 22:00 on; and one bar is missing in the night to Friday.
    week = {name: column[np.arange(_BARS) != 20] for name, column in whole.items()}
    friday = week["open_us"] < open_us[0] + 46 * Timeframe.H1.us
    week["open_us"] = np.where(friday, week["open_us"], week["open_us"] + 2 * Timeframe.D1.us)
    path = write(week)
    for calendar, gaps in (("continuous", 2), ("weekdays", 1)):
        instrument = Instrument.model_validate({"id": "check:A", "calendar": calendar})
        found = _read(read, path, instrument)[1].gaps
        assert found == gaps, f"by the calendar {calendar} there are {found} gaps, and not {gaps}"


def broken_bars_are_refused_in_one_line(read: BarSource, write: Write) -> None:
    for what, broken in _broken():
        _refused(read, write(broken), what, names_a_row=True)


def a_timeframe_that_does_not_fit_is_refused(read: BarSource, write: Write) -> None:
    minutes, hours = write(_bars(Timeframe.M1)), write(_bars(Timeframe.H1))
    _refused(read, minutes, "bars of 1m that are said to be of 1h", Timeframe.H1, names_a_row=True)
    _refused(read, hours, "bars of 1h that are said to be of 1m", Timeframe.M1)


def what_holds_no_bars_is_refused_in_one_line(read: BarSource, write: Write) -> None:
    nothing = {name: column[:0] for name, column in _bars(Timeframe.M1).items()}
    _refused(read, write(nothing), "a file without bars")
    path = Path(write(_bars(Timeframe.M1)))
    _refused(read, str(path.with_name(f"{fresh('missing')}-{path.name}")), "a file that is not there")


BAR_SOURCE_CHECKS: Sequence[Callable[[BarSource, Write], None]] = (
    bars_come_back_to_the_bit,
    what_a_file_does_not_say_is_not_invented,
    the_report_says_what_was_found,
    the_timeframe_is_inferred,
    a_given_timeframe_may_have_many_gaps,
    gaps_are_those_of_the_calendar,
    broken_bars_are_refused_in_one_line,
    a_timeframe_that_does_not_fit_is_refused,
    what_holds_no_bars_is_refused_in_one_line,
)
"""The contract of a source of bars, promise by promise: for test runners that want to name each one."""


def _read(
    read: BarSource, path: str, instrument: Instrument, timeframe: Timeframe | None = None
) -> tuple[BarArrays, FileReport]:
    return whole(read(path, instrument, timeframe), instrument)


def _bars(timeframe: Timeframe) -> dict[str, NDArray[np.float64] | NDArray[np.int64]]:
    """Sound bars whose numbers no rounding survives."""
    chance = np.random.default_rng(5)
    close = 100.0 * np.exp(np.cumsum(chance.normal(0.0, 1e-3, _BARS)))
    opened = np.r_[100.0, close[:-1]]
    return {
        "open_us": _START_US + np.arange(_BARS, dtype=np.int64) * timeframe.us,
        "open": opened,
        "high": np.maximum(opened, close) + 1 / 3,
        "low": np.minimum(opened, close) - 1 / 3,
        "close": close,
        "volume": chance.lognormal(5.0, 1.0, _BARS),
        "funding_rate": chance.normal(0.0, 1e-4, _BARS),
    }


def _broken() -> Iterator[tuple[str, Series]]:
    """Bars of which one is broken, and how."""
    for name, value in (
        ("open", np.nan),
        ("high", np.inf),
        ("low", -np.inf),
        ("low", 0.0),
        ("close", -3.0),
        ("high", 1.0),
        ("open", 1000.0),
        ("close", 1000.0),
        ("volume", -1.0),
        ("volume", np.nan),
    ):
        bars = _bars(Timeframe.M1)
        bars[name][4] = value
        yield f"a bar whose {name} is {value}", bars
    for what, shift_us in (
        ("a bar that comes twice", -Timeframe.M1.us),
        ("a bar that comes after a later one", -3 * Timeframe.M1.us),
        ("a bar that opens between two others", Timeframe.M1.us // 2),
    ):
        bars = _bars(Timeframe.M1)
        bars["open_us"][7] += shift_us
        yield what, bars


def _refused(
    read: BarSource, path: str, what: str, timeframe: Timeframe | None = None, *, names_a_row: bool = False
) -> None:
    """Raise `AssertionError` unless a path is refused by one line that names it, the row and a remedy."""
    line: str | None = None
    try:
        _read(read, path, _INSTRUMENT, timeframe)
    except UserError as error:
        line = str(error)
    assert line is not None, f"{what} is read"
    assert line.startswith(path), f"{what} is refused without the path: {line}"
    said = line.removeprefix(path)
    assert "\n" not in said, f"{what} is refused in several lines: {line}"
    assert said.count(": ") >= 2, f"{what} is refused without a remedy: {line}"
    where = said.split(":")[0]
    assert not names_a_row or any(sign.isdigit() for sign in where), f"{what} is refused without its row: {line}"
