"""Repair: stored bars that are missing or doubtful, asked of their source anew and held against those beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.market import (
    BAR_PRICES,
    BarArrays,
    Calendar,
    Instrument,
    Series,
    Timeframe,
    align,
    from_us,
    joined,
)
from tradeloop.common.market.calendars import gaps
from tradeloop.common.market.faults import Fault
from tradeloop.ingest.application.fetch import Progress, paged, sound
from tradeloop.ingest.application.stored import write
from tradeloop.ingest.domain import corrections
from tradeloop.ingest.ports import MarketSource

BESIDE = 3
"""Bars at each end of a range that are fetched with it, and have to agree with those that are stored."""
AGREE = 0.01
"""Prices agree that differ by this share at most: another unit, or an adjustment, differs by more."""
_AT_ONCE = 10_000
"""Bars of a range that are fetched, judged and stored as one."""
_PAGE = 400
"""Bars within which several ranges are fetched at once: venues give no fewer in a page, and ask for time between."""

_NOTHING: Series = {"open_us": np.empty(0, np.int64)} | {name: np.empty(0, np.float64) for name in BAR_PRICES}

Range = tuple[int, int]
"""Open times, in microseconds since the epoch, from the first up to the second."""


@dataclass(frozen=True, slots=True)
class Mended:
    """The outcome for a range: what came of its bars."""

    start_us: int
    end_us: int
    added: int = 0
    """Bars that were not stored."""
    changed: tuple[tuple[int, str], ...] = ()
    """The open time of each bar that was stored otherwise, and what is new of it."""
    confirmed: tuple[int, ...] = ()
    """The open times of bars that the source has as they are stored."""
    lacking: tuple[int, ...] = ()
    """The open times of stored bars that the source does not have; they stay."""
    left_out: tuple[str, ...] = ()
    """Bars that the source has and that are none, and those that were dropped as they are there."""
    refused: str = ""
    """Why nothing was taken."""

    def lines(self, timeframe: Timeframe) -> list[str]:
        """A line for each change, and for what was asked for in vain."""
        last_us = self.end_us - timeframe.us
        within = spoken_us(self.start_us) + (f" to {spoken_us(last_us)}" if last_us > self.start_us else "")
        if self.refused:
            return [f"{within}: left as it is: {self.refused}"]
        said = [f"{within}: {self.added:,} bars added that were missing"] if self.added else []
        said += [f"{spoken_us(at_us)}: changed: {what}" for at_us, what in self.changed]
        said += [f"{spoken_us(at_us)}: the source has it as it is stored" for at_us in self.confirmed]
        said += [f"{spoken_us(at_us)}: stays, though the source has no bar then" for at_us in self.lacking]
        said += [f"left out {line}" for line in self.left_out]
        return said or [f"{within}: the source has no bars there"]


def spoken_us(time_us: int) -> str:
    """A time for people, in UTC."""
    return f"{from_us(time_us):%Y-%m-%d %H:%M:%S}"


def doubtful(
    bars: Series, found: Sequence[Fault], timeframe: Timeframe, calendar: Calendar
) -> tuple[list[Range], list[Range]]:
    """The ranges in which bars are missing, and those of bars with any other fault, each in order.

    `found` are the faults of these bars, which are in the order of time.
    """
    open_us, length_us = bars["open_us"].astype(np.int64), timeframe.us
    missing = [(gap.start_us, gap.end_us) for gap in gaps(np.unique(open_us), timeframe, calendar)]
    ranges = []
    for fault in found:
        if fault.kind == "gap":
            continue
        first, last = fault.row + (fault.kind == "stale"), fault.row + fault.bars - 1
        ranges.append((int(open_us[first]), int(open_us[last]) + length_us))
    together: list[Range] = []
    for start_us, end_us in sorted(ranges):
        if together and start_us <= together[-1][1]:
            start_us, end_us = together[-1][0], max(end_us, together.pop()[1])
        together.append((start_us, end_us))
    return missing, together


def mend(
    source: MarketSource,
    store: BarStore,
    instrument: Instrument,
    timeframe: Timeframe,
    ranges: Iterable[Range],
    aside: Series,
    wait: Callable[[float], object],
) -> Iterator[Mended | Progress]:
    """Ask for the bars of some ranges anew, and store what is right: whoever is killed begins again, and stores the
    rest. `aside` are bars that were dropped, which do not come back as they were. Raises as `fetch.fetch`."""
    ranges = sorted(ranges)
    for group in together(ranges, timeframe):
        first_us, past_us = around(group, timeframe)
        parts = []
        for page in paged(source, instrument, timeframe, first_us, past_us, wait):
            if isinstance(page, Progress):
                yield page
            elif len(page.bars["open_us"]):
                parts.append(page.bars)
        for within in group:
            yield taken(store, instrument.id, timeframe, within, parts, ranges, aside)


def taken(
    store: BarStore,
    instrument: str,
    timeframe: Timeframe,
    within: Range,
    parts: Sequence[Series],
    doubts: Sequence[Range],
    aside: Series | None = None,
) -> Mended:
    """Store the bars of a range that were fetched with those beside it, if these agree with what is stored.

    `doubts` are all ranges whose stored bars prove nothing.
    """
    start_us, end_us = within
    came = joined(parts) if parts else _NOTHING
    rows = (came["open_us"] >= start_us) & (came["open_us"] < end_us)
    kept, left_out = sound({name: column[rows] for name, column in came.items()})
    margin_us = BESIDE * timeframe.us
    stored = store.read([instrument], timeframe, start_us - margin_us, end_us + margin_us)
    if aside is not None and len(kept["open_us"]):
        kept, again = _without(kept, aside)
        left_out += again
    there = stored.open_us[(stored.open_us >= start_us) & (stored.open_us < end_us)]
    lacking = tuple(np.setdiff1d(there, came["open_us"][rows]).tolist())
    mended = Mended(start_us, end_us, lacking=lacking, left_out=left_out)
    if not len(kept["open_us"]):
        return mended
    if refused := _disagreement(came, stored, doubts):
        return replace(mended, lacking=(), refused=refused)
    new = align((instrument,), timeframe, [kept])
    changed = corrections(new, stored)
    write(store, timeframe, new)
    both = np.intersect1d(new.open_us, there)
    return replace(
        mended,
        added=len(new) - len(both),
        changed=tuple(_words(changed, stored)),
        confirmed=tuple(np.setdiff1d(both, changed.open_us).tolist()),
    )


def around(group: Sequence[Range], timeframe: Timeframe) -> Range:
    """The range that is asked for: with the bars beside it."""
    return group[0][0] - BESIDE * timeframe.us, group[-1][1] + BESIDE * timeframe.us


def together(ranges: Iterable[Range], timeframe: Timeframe) -> Iterator[list[Range]]:
    """Ranges that are fetched at once, as they lie within a page; a long one in several pieces."""
    group: list[Range] = []
    for start_us, end_us in ranges:
        for at_us in range(start_us, end_us, _AT_ONCE * timeframe.us):
            until_us = min(at_us + _AT_ONCE * timeframe.us, end_us)
            if group and until_us - group[0][0] > _PAGE * timeframe.us:
                yield group
                group = []
            group.append((at_us, until_us))
    if group:
        yield group


def _disagreement(came: Series, stored: BarArrays, doubts: Sequence[Range]) -> str:
    """Why what came cannot be from the same series as what is stored; nothing where it can."""
    proves = np.ones(len(stored), np.bool_)
    for start_us, end_us in doubts:
        proves &= (stored.open_us < start_us) | (stored.open_us >= end_us)
    _, ours, theirs = np.intersect1d(stored.open_us[proves], came["open_us"], return_indices=True)
    if not len(ours):
        return "no bar beside it is both stored and at the source, so nothing shows that they are of one series"
    shares = [np.abs(came[name][theirs] / getattr(stored, name)[proves][ours, 0] - 1) for name in BAR_PRICES]
    most = float(np.max(shares))
    if most <= AGREE:
        return ""
    return f"prices beside it differ by {most:.2%} from the source's: another unit, or adjusted?"


def _without(bars: Series, aside: Series) -> tuple[Series, tuple[str, ...]]:
    """The bars that were not dropped as they are, and words for those that were."""
    _, ours, theirs = np.intersect1d(bars["open_us"], aside["open_us"], return_indices=True)
    same = np.logical_and.reduce([bars[name][ours] == aside[name][theirs] for name in BAR_PRICES])
    keep: NDArray[np.bool_] = np.ones(len(bars["open_us"]), np.bool_)
    keep[ours[same]] = False
    times = [from_us(open_us).isoformat() for open_us in bars["open_us"][~keep].tolist()]
    left_out = tuple(f"{time}: the source still has it as it was dropped" for time in times)
    return {name: column[keep] for name, column in bars.items()}, left_out


def _words(changed: BarArrays, stored: BarArrays) -> Iterator[tuple[int, str]]:
    old, rows = stored.columns(), np.searchsorted(stored.open_us, changed.open_us)
    for row, before in enumerate(rows.tolist()):
        what = []
        for name, column in changed.columns().items():
            was, now = float(old[name][before, 0]) if name in old else math.nan, float(column[row, 0])
            if was != now and not (math.isnan(was) and math.isnan(now)):
                what.append(f"{name} {was:.10g} becomes {now:.10g}")
        yield int(changed.open_us[row]), ", ".join(what)
