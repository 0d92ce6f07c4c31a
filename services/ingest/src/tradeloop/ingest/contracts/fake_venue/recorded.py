"""Recorded frames of Binance, served again at the pace at which they came, or faster.

A line is the time at which a frame was received, in nanoseconds since the epoch, a space, and the frame of a combined
stream, `1723161255030314667 {"stream":"btcusdt@trade","data":{...}}`, or a snapshot of the order book, as REST gives
it: `1723161255319702566 {"lastUpdateId":5123107852948,"bids":[...],"asks":[...]}`.
"""

from __future__ import annotations

import gzip
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

_LINE = re.compile(r'(\d+) (\{"stream":"([a-z0-9]+@[A-Za-z]+)[^"]*","data":(.*)\})\s*')
_SNAPSHOT = re.compile(r'(\d+) (\{"lastUpdateId":.*\})\s*')


class Recording:
    """A file of frames, `.gz` or not, that begins to play at a time of the venue: `play_from`.

    Raises `ValueError` for a line that is none.
    """

    def __init__(self, path: str | Path, *, speed: float = 1.0) -> None:
        if not speed > 0.0:
            raise ValueError(f"a recording cannot be played at a speed of {speed}: give more than 0")
        received, self._frames, self._data, self._names = [], list[str](), list[str](), list[str]()
        with gzip.open(path, "rt") if str(path).endswith(".gz") else open(path) as lines:
            for number, line in enumerate(lines, 1):
                match = _LINE.fullmatch(line) or _SNAPSHOT.fullmatch(line)
                if match is None:
                    raise ValueError(f"{path}, line {number}: this is no frame of a combined stream: {line[:60]!r}")
                received.append(int(match[1]))
                self._frames.append(match[2])
                name, data = match.groups()[2:] if match.re is _LINE else ("", match[2])
                self._names.append(name)
                self._data.append(data)
        if not received or any(later < earlier for earlier, later in pairwise(received)):
            raise ValueError(f"{path}: a recording holds frames in the order in which they were received")
        self._due_us = [int((time - received[0]) / 1000 / speed) for time in received]
        self._origin_us = 0
        self._applied = 0
        self._sides: tuple[dict[str, str], dict[str, str]] = ({}, {})
        self._last_id = 0
        self.streams = frozenset(self._names) - {""}
        """The streams that are in it, without their pace: `btcusdt@trade`, `btcusdt@depth`."""

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def length_us(self) -> int:
        """How long it plays."""
        return self._due_us[-1]

    def play_from(self, time_us: int) -> None:
        """Let the first frame be due a microsecond after a time of the venue."""
        self._origin_us = time_us + 1

    def plays(self, name: str) -> bool:
        """Whether a stream, such as `btcusdt@depth@100ms`, is in it."""
        return _bare(name) in self.streams

    def frames(
        self, names: Iterable[str], start_us: int, end_us: int, *, combined: bool
    ) -> Iterator[tuple[int, str, str]]:
        """The frames of some streams that are due in `(start_us, end_us]`: when, of what kind, and their text.

        `combined` gives them as they were recorded, else what is inside.
        """
        wanted = {_bare(name) for name in names}
        first = bisect_right(self._due_us, start_us - self._origin_us)
        last = bisect_right(self._due_us, end_us - self._origin_us)
        for index in range(first, last):
            if self._names[index] in wanted:
                text = self._frames[index] if combined else self._data[index]
                yield self._origin_us + self._due_us[index], self._names[index].split("@")[1], text

    def book(self, symbol: str, now_us: int) -> dict[str, Any] | None:
        """The order book that the snapshots and the changes until a time have made; without a snapshot, of the levels
        that were named since the recording began. None for a symbol whose book is not in it."""
        name = f"{symbol.lower()}@depth"
        if name not in self.streams:
            return None
        last = bisect_right(self._due_us, now_us - self._origin_us)
        for index in range(self._applied, last):
            if self._names[index] == name:
                self._apply(json.loads(self._data[index]))
            elif not self._names[index]:
                snapshot = json.loads(self._data[index])
                self._sides = (dict(snapshot["bids"]), dict(snapshot["asks"]))
                self._last_id = snapshot["lastUpdateId"]
                # A snapshot is older than changes that overtook it.
                for before in range(index):
                    if self._names[before] == name:
                        self._apply(json.loads(self._data[before]))
        self._applied = max(self._applied, last)
        if not self._last_id:
            self._last_id = json.loads(self._data[self._names.index(name)])["pu"]
        sides = [[[price, size] for price, size in side.items() if float(size)] for side in self._sides]
        bids, asks = (sorted(side, key=lambda level: float(level[0])) for side in sides)
        return {"lastUpdateId": self._last_id, "bids": bids[::-1], "asks": asks}

    def _apply(self, change: dict[str, Any]) -> None:
        if change["u"] > self._last_id:
            self._last_id = change["u"]
            for side, levels in zip(self._sides, (change["b"], change["a"]), strict=True):
                side.update(levels)


def _bare(name: str) -> str:
    return "@".join(name.split("@")[:2])
