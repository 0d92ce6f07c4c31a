"""The contract of a source of market data: `check_market_source`. It needs no test framework.

Whoever tests a source of its own stands a venue up whose truth it knows, such as `fake_venue`, and describes it by
`MarketOnTrial`. The checks hold whatever faults the venue has; those of the stream need one that sends all frames.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from tradeloop.common.errors import UserError
from tradeloop.common.market import Instrument, Series, Timeframe, joined
from tradeloop.ingest.ports import (
    BatchSource,
    Connected,
    MarketEvent,
    MarketSource,
    MarketStream,
    Page,
    SourceUnavailable,
    StreamedBar,
)

T = TypeVar("T")

_ATTEMPTS = 60
_PAUSE_S = 0.05
_PATIENCE_S = 20.0


@dataclass(frozen=True)
class MarketOnTrial:
    """A venue with a source, and the truth about it."""

    open: Callable[[], MarketSource]
    symbol: str
    timeframe: Timeframe
    start_us: int
    end_us: int
    """All bars that open from `start_us` and before `end_us` have closed: some pages of them."""
    truth: Callable[[int, int], Series]
    """The bars that open in a range, whatever the venue's clock shows: `open_us`, prices and volume."""
    now_us: Callable[[], int]
    """The venue's clock."""
    advance: Callable[[float], None]
    """Moves the venue's clock, and lets it send what is due."""
    streams: bool = True
    """Whether the source has a live stream; without one it is to say so."""
    others: Sequence[str] = ()
    """Further symbols of the venue, for a source that is asked for many at once."""
    lag_us: int = 0
    """How long after its close a bar may still be held back, such as by files of whole days."""


def check_market_source(market: MarketOnTrial) -> None:
    """Run all of `MARKET_SOURCE_CHECKS`."""
    for check in MARKET_SOURCE_CHECKS:
        check(market)


def history_is_the_truth_bar_for_bar(market: MarketOnTrial) -> None:
    with closing(market.open()) as source:
        _is_truth(market, _history(market, source, market.start_us, market.end_us), market.start_us, market.end_us)


def any_part_of_history_is_that_part(market: MarketOnTrial) -> None:
    length_us = market.timeframe.us
    middle_us = market.start_us + (market.end_us - market.start_us) // length_us // 2 * length_us
    with closing(market.open()) as source:
        for start_us, end_us in (
            (middle_us, middle_us + length_us),
            (middle_us + 1, middle_us + length_us + 1),
            (middle_us - 5 * length_us, middle_us + 7 * length_us - 1),
            (middle_us, middle_us),
        ):
            _is_truth(market, _history(market, source, start_us, end_us), start_us, end_us)


def pages_follow_each_other_and_end_at_the_end(market: MarketOnTrial) -> None:
    with closing(market.open()) as source:
        pages = _history(market, source, market.start_us, market.end_us)
    at_us = market.start_us
    for page in pages:
        open_us = page.bars["open_us"]
        assert page.until_us > at_us, "a page ends where it begins"
        assert not len(open_us) or at_us <= open_us[0], "a page has a bar of the page before"
        assert not len(open_us) or open_us[-1] < page.until_us, "a page has a bar that opens after its end"
        at_us = page.until_us
    assert at_us == market.end_us, f"history ends {(market.end_us - at_us) / 1e6:g} s before it should"


def nothing_unfinished_is_given(market: MarketOnTrial) -> None:
    length_us = market.timeframe.us
    with closing(market.open()) as source:
        start_us = market.now_us() - market.lag_us - 5 * length_us
        pages = _history(market, source, start_us, market.now_us() + 5 * length_us)
        closed_us = market.now_us()
    bars = _joined(pages)
    assert (bars["open_us"] + length_us <= closed_us).all(), "a bar is given that has not closed"
    _is_truth(market, pages, start_us, pages[-1].until_us)
    assert pages[-1].until_us > closed_us - market.lag_us - 3 * length_us, "bars that have closed are held back"


def terms_are_those_of_the_instrument_that_was_asked_for(market: MarketOnTrial) -> None:
    with closing(market.open()) as source:
        instrument = _instrument(market, source)
        assert instrument.id == f"{source.venue}:{market.symbol}", f"{market.symbol} is called {instrument.id}"


def what_the_venue_does_not_have_is_refused_in_one_line(market: MarketOnTrial) -> None:
    with closing(market.open()) as source:
        wrong = f"{market.symbol[:-1]}Q"
        unknown = Instrument(id=f"{source.venue}:{wrong}")
        _refused(lambda: _asked(lambda: source.instruments([wrong])), wrong)
        _refused(lambda: _asked(lambda: list(source.history(unknown, market.timeframe, 0, 1))), wrong)
        foreign = Instrument(id=f"elsewhere:{market.symbol}")
        _refused(lambda: _asked(lambda: list(source.history(foreign, market.timeframe, 0, 1))), foreign.id)


def many_histories_are_each_its_history(market: MarketOnTrial) -> None:
    with closing(market.open()) as source:
        if not isinstance(source, BatchSource):
            return
        assert source.at_once > 1, "a source that can be asked for many at once takes one"
        instruments = [_asked(lambda: source.instruments([name])[0]) for name in (market.symbol, *market.others)]  # noqa: B023
        length_us = market.timeframe.us
        for start_us, end_us in (
            (market.end_us - 40 * length_us, market.end_us),
            (market.end_us - 7 * length_us + 1, market.now_us() + 5 * length_us),
            (market.end_us, market.end_us),
        ):
            pages = _asked(lambda: source.histories(instruments, market.timeframe, start_us, end_us))  # noqa: B023
            assert pages.keys() == {one.id for one in instruments}, f"of {len(instruments)} came {sorted(pages)}"
            page = pages[instruments[0].id]
            assert start_us <= page.until_us <= end_us, "an answer for many ends outside of what was asked"
            assert page.until_us >= min(end_us, market.now_us() - market.lag_us - 3 * length_us), "bars are held back"
            _is_truth(market, [page], start_us, page.until_us)
            for one in instruments[1:]:
                alone, told = _joined(_history(market, source, start_us, page.until_us, one)), pages[one.id].bars
                for name, values in alone.items():
                    assert np.array_equal(told[name], values), f"{one.id} has another {name} where many are asked for"


def the_clock_is_the_venues(market: MarketOnTrial) -> None:
    with closing(market.open()) as source:
        told_us = _asked(source.time_us)
    assert abs(told_us - market.now_us()) < 60_000_000, "the source tells another time than the venue"


def a_stream_begins_with_connected_and_its_closed_bars_are_the_truth(market: MarketOnTrial) -> None:
    length_us = market.timeframe.us
    with closing(market.open()) as source:
        instrument = _instrument(market, source)
        if not market.streams:
            _refused(lambda: source.stream([instrument], market.timeframe, frozenset(["bars"])), source.venue)
            return
        with closing(source.stream([instrument], market.timeframe, frozenset(["bars"]))) as stream:
            events = _until(stream, lambda found: bool(found))
            assert isinstance(events[0], Connected), f"a stream begins with {events[0]}"
            begun_us = -(-market.now_us() // length_us) * length_us

            def closed(found: Iterable[MarketEvent]) -> dict[int, StreamedBar]:
                bars = [one for one in found if isinstance(one, StreamedBar) and one.open_us >= begun_us]
                newest_us = max((bar.open_us for bar in bars), default=0)
                # Where the venue says nothing of it, a bar is closed when the next one has come.
                return {
                    one.open_us: one for one in bars if one.closed or (one.closed is None and one.open_us < newest_us)
                }

            for _ in range(_ATTEMPTS):
                market.advance(length_us / 2e6)
                events = [*events, *stream.poll(0.2)]
                if len(closed(events)) >= 3:
                    break
            found = closed(events)
            assert len(found) >= 3, f"of many bars that closed the stream told {len(found)}"
            truth = market.truth(min(found), max(found) + 1)
            for row, open_us in enumerate(truth["open_us"].tolist()):
                assert open_us in found, "a bar that closed is missing from the stream"
                bar = found[open_us]
                told = (bar.open, bar.high, bar.low, bar.close, bar.volume)
                wanted = tuple(float(truth[name][row]) for name in ("open", "high", "low", "close", "volume"))
                assert told == wanted, f"a closed bar of the stream is {told}, and not {wanted}"
                assert bar.instrument == instrument.id, f"a bar of {instrument.id} is called that of {bar.instrument}"


def a_stream_that_is_closed_leaves_no_thread(market: MarketOnTrial) -> None:
    if not market.streams:
        return
    with closing(market.open()) as source:
        instrument = _instrument(market, source)
        before = set(threading.enumerate())
        stream = source.stream([instrument], market.timeframe, frozenset(["bars"]))
        _until(stream, lambda found: bool(found))
        stream.close()
        left = [one.name for one in threading.enumerate() if one not in before and one.name.startswith("stream")]
        assert not left, f"a closed stream leaves the thread {left}"


MARKET_SOURCE_CHECKS: Sequence[Callable[[MarketOnTrial], None]] = (
    history_is_the_truth_bar_for_bar,
    any_part_of_history_is_that_part,
    pages_follow_each_other_and_end_at_the_end,
    nothing_unfinished_is_given,
    terms_are_those_of_the_instrument_that_was_asked_for,
    what_the_venue_does_not_have_is_refused_in_one_line,
    many_histories_are_each_its_history,
    the_clock_is_the_venues,
    a_stream_begins_with_connected_and_its_closed_bars_are_the_truth,
    a_stream_that_is_closed_leaves_no_thread,
)
"""The contract of a source, promise by promise: for test runners that want to name each one."""


def _instrument(market: MarketOnTrial, source: MarketSource) -> Instrument:
    [instrument] = _asked(lambda: source.instruments([market.symbol]))
    return instrument


def _asked(ask: Callable[[], T]) -> T:
    """Ask as often as a source is unavailable."""
    for _ in range(_ATTEMPTS):
        try:
            return ask()
        except SourceUnavailable as error:
            reason, pause_s = str(error), error.retry_after_s or _PAUSE_S
        assert "\n" not in reason, f"a source is unavailable in several lines: {reason}"
        threading.Event().wait(pause_s)
    raise AssertionError("a source stays unavailable")


def _history(
    market: MarketOnTrial, source: MarketSource, start_us: int, end_us: int, of: Instrument | None = None
) -> list[Page]:
    """All pages of a range; where the source becomes unavailable, from the last page on."""
    instrument = of or _instrument(market, source)
    pages: list[Page] = []

    def rest() -> None:
        at_us = pages[-1].until_us if pages else start_us
        for page in source.history(instrument, market.timeframe, at_us, end_us):
            pages.append(page)

    _asked(rest)
    return pages


def _joined(pages: Sequence[Page]) -> Series:
    return joined([page.bars for page in pages]) if pages else {"open_us": np.empty(0, np.int64)}


def _is_truth(market: MarketOnTrial, pages: Sequence[Page], start_us: int, end_us: int) -> None:
    bars, truth = _joined(pages), market.truth(start_us, end_us)
    assert np.array_equal(bars["open_us"], truth["open_us"]), (
        f"history has {len(bars['open_us'])} bars, and in truth there are {len(truth['open_us'])}"
    )
    for name in ("open", "high", "low", "close", "volume") if len(truth["open_us"]) else ():
        assert np.array_equal(bars[name], truth[name]), f"history has another {name} than there is in truth"


def _refused(ask: Callable[[], object], name: str) -> None:
    line: str | None = None
    try:
        ask()
    except UserError as error:
        line = str(error)
    assert line is not None, f"{name} is taken"
    assert name in line, f"{name} is refused without its name: {line}"
    assert "\n" not in line, f"{name} is refused in several lines: {line}"


def _until(stream: MarketStream, found: Callable[[Sequence[MarketEvent]], bool]) -> list[MarketEvent]:
    events: list[MarketEvent] = []
    for _ in range(int(_PATIENCE_S / 0.2)):
        events += stream.poll(0.2)
        if found(events):
            return events
    raise AssertionError("a stream is silent")
