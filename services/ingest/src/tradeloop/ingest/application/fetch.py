"""The fetch of bars from a source into the store: page by page, and only what was not fetched before."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.errors import UserError
from tradeloop.common.market import BAR_PRICES, Instrument, Series, Timeframe, align, from_us
from tradeloop.ingest.application.stored import write
from tradeloop.ingest.ports import Fetched, FetchedSpan, MarketSource, Page, SourceUnavailable, merged

T = TypeVar("T")

ATTEMPTS = 12
"""So often in a row a source may be unavailable before a fetch is given up: some six minutes."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 60.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a fetch is."""

    at_us: int
    """All bars that open before, and not before the start, are stored."""
    bars: int = 0
    """How many the last page brought."""
    left_out: tuple[str, ...] = ()
    """The bars of the last page that are no bars, each with the reason."""
    waits_s: float = 0.0
    """How long it now waits for the source."""
    reason: str = ""


def missing(spans: Iterable[FetchedSpan], start_us: int, end_us: int) -> list[tuple[int, int]]:
    """The parts of `[start_us, end_us)` that no range covers, in order."""
    parts, at_us = [], start_us
    for span in merged(spans):
        if span.start_us >= end_us:
            break
        if span.start_us > at_us:
            parts.append((at_us, span.start_us))
        at_us = max(at_us, span.end_us)
    if at_us < end_us:
        parts.append((at_us, end_us))
    return parts


def fetch(
    source: MarketSource,
    name: str,
    store: BarStore,
    fetched: Fetched,
    instrument: Instrument,
    timeframe: Timeframe,
    start_us: int,
    end_us: int,
    wait: Callable[[float], object],
) -> Iterator[Progress]:
    """Fetch the closed bars that open in `[start_us, end_us)`; `name` says where from in the record.

    A page is stored, then recorded: whoever is killed in between fetches that page again, and stores the same. A bar
    that is none, such as one with a price of 0, is left out and counted: the rest of a venue's history is not to wait
    for it. `wait` passes seconds. Raises `UserError`, `SourceUnavailable` after many attempts, and what stores raise.
    """
    now_us = yield from _patient(source.time_us, start_us, wait)
    if start_us >= now_us:
        raise UserError(
            f"{instrument.id}: the range begins at {from_us(start_us).isoformat()}, and at the source it is "
            f"{from_us(now_us).isoformat(timespec='seconds')}: give an earlier start"
        )
    for first_us, last_us in missing(fetched.spans(name, instrument.id, timeframe), start_us, end_us):
        at_us = first_us
        for page in paged(source, instrument, timeframe, first_us, last_us, wait):
            if isinstance(page, Progress):
                yield page
                continue
            kept, left_out = sound(page.bars)
            if len(kept["open_us"]):
                write(store, timeframe, align((instrument.id,), timeframe, [kept]))
            fetched.add(name, instrument.id, timeframe, FetchedSpan(at_us, page.until_us, len(left_out)))
            at_us = page.until_us
            yield Progress(at_us, len(kept["open_us"]), left_out)


def paged(
    source: MarketSource,
    instrument: Instrument,
    timeframe: Timeframe,
    start_us: int,
    end_us: int,
    wait: Callable[[float], object],
) -> Iterator[Page | Progress]:
    """The pages of a range, and how far it is whenever the source is waited for. Raises as `fetch`."""
    at_us, failures = start_us, 0
    while at_us < end_us:
        try:
            for page in source.history(instrument, timeframe, at_us, end_us):
                at_us, failures = page.until_us, 0
                yield page
            return  # the rest has not closed yet
        except SourceUnavailable as error:
            failures += 1
            if failures >= ATTEMPTS:
                raise
            again_s = pause_s(failures, error)
            yield Progress(at_us, waits_s=again_s, reason=str(error))
            wait(again_s)


def patiently(ask: Callable[[], T], wait: Callable[[float], object], say: Callable[[Progress], object]) -> T:
    """The answer to a question other than for bars, asked again as `fetch` does, and raising the same."""
    waits = _patient(ask, 0, wait)
    while True:
        try:
            say(next(waits))
        except StopIteration as end:
            answer: T = end.value
            return answer


def _patient(ask: Callable[[], T], at_us: int, wait: Callable[[float], object]) -> Generator[Progress, None, T]:
    failures = 0
    while True:
        try:
            return ask()
        except SourceUnavailable as error:
            failures += 1
            if failures >= ATTEMPTS:
                raise
            again_s = pause_s(failures, error)
            yield Progress(at_us, waits_s=again_s, reason=str(error))
            wait(again_s)


def pause_s(failures: int, error: SourceUnavailable) -> float:
    """How long a source is left alone after so many failures in a row: as long as it asks for, or longer each time."""
    own_s: float = min(_FIRST_PAUSE_S * 2**failures, _LONGEST_PAUSE_S)
    return max(own_s, error.retry_after_s or 0.0)


def sound(bars: Series) -> tuple[Series, tuple[str, ...]]:
    """The bars that are such, and a line for each one that is not. A volume that is not known is none."""
    if "volume" in bars and np.isnan(bars["volume"]).all():
        bars = {name: column for name, column in bars.items() if name != "volume"}
    reasons: dict[int, str] = {}
    for broken, what in _faults(bars):
        for row in np.flatnonzero(broken).tolist():
            values = {name: float(column[row]) for name, column in bars.items() if name != "open_us"}
            reasons.setdefault(row, f"{from_us(int(bars['open_us'][row])).isoformat()}: {what.format(**values)}")
    keep = np.ones(len(bars["open_us"]), dtype=np.bool_)
    keep[list(reasons)] = False
    return {name: column[keep] for name, column in bars.items()}, tuple(reasons[row] for row in sorted(reasons))


def _faults(bars: Series) -> Iterator[tuple[NDArray[np.bool_], str]]:
    for name in BAR_PRICES:
        yield ~(np.isfinite(bars[name]) & (bars[name] > 0)), f"{name} {{{name}}} is no price"
    high, low = bars["high"], bars["low"]
    yield high < low, "high {high} is below low {low}"
    for name in ("open", "close"):
        yield (bars[name] < low) | (bars[name] > high), f"{name} {{{name}}} lies outside [low {{low}}, high {{high}}]"
    if "volume" in bars:
        yield (bars["volume"] < 0) | np.isinf(bars["volume"]), "volume {volume} is no volume"
