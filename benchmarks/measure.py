"""Rows of results, and how two things are timed against each other on a machine that is never quiet."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    measured: float
    unit: str
    wanted: float | None
    """None for what is only told."""
    wanted_is: Literal["at least", "under"] = "at least"
    against: str = ""
    """The peer or the bound; nothing where the measured figure itself is judged."""
    against_measured: float | None = None
    ratio: float | None = None
    """The ratio of the two figures, so that more is better."""

    @property
    def met(self) -> bool | None:
        if self.wanted is None:
            return None
        judged = self.measured if self.ratio is None else self.ratio
        return judged >= self.wanted if self.wanted_is == "at least" else judged < self.wanted


def report(rows: Sequence[Row], notes: Sequence[str]) -> None:
    """Hand the results of a subject to `run.py`: one line of JSON on standard output."""
    json.dump({"rows": [asdict(row) | {"met": row.met} for row in rows], "notes": list(notes)}, sys.stdout)
    print()


def seconds(block: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    block()
    return time.perf_counter() - started


@dataclass(frozen=True)
class Compared:
    """Rates of several blocks, taken in turns."""

    rates: dict[str, float]
    """Median of each, units per second."""
    rounds: dict[str, list[float]]

    def ratio(self, one: str, other: str) -> float:
        """Median over the rounds of the rate of one divided by that of the other in the same round."""
        pairs = zip(self.rounds[one], self.rounds[other], strict=True)
        return statistics.median(a / b for a, b in pairs)


def in_turns(
    blocks: Mapping[str, tuple[Callable[[], object], float]],
    rounds: int,
    before: Mapping[str, Callable[[], object]] | None = None,
) -> Compared:
    """Time blocks A B C, A B C, ...: what slows the machine for a while slows all of them.

    Each comes with how many units one call does. `before` is called, untimed, before the block of that name. The
    first round warms up and is not counted.
    """
    rates: dict[str, list[float]] = {name: [] for name in blocks}
    for turn in range(rounds + 1):
        for name, (block, units) in blocks.items():
            if before and name in before:
                before[name]()
            rate = units / seconds(block)
            if turn:
                rates[name].append(rate)
    return Compared({name: statistics.median(values) for name, values in rates.items()}, rates)
