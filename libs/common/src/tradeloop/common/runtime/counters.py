"""The numbers that a runner keeps of its work."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

LATENCIES_S = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 60.0)
"""Upper bounds by which times are counted."""


@dataclass(slots=True)
class Durations:
    """How long things took."""

    total_s: float = 0.0
    within: list[int] = field(default_factory=lambda: [0] * (len(LATENCIES_S) + 1))
    """How many took up to each of `LATENCIES_S`, but longer than the one before; the last took longer."""

    def took(self, seconds: float) -> None:
        """Count one."""
        self.total_s += seconds
        self.within[bisect_left(LATENCIES_S, seconds)] += 1


@dataclass(slots=True)
class Counters:
    """The work of a runner so far."""

    handled: int = 0
    published: int = 0
    retried: int = 0
    dead_letters: int = 0
    dropped: int = 0
    """Outputs that the bus refused for their size and that no message could be given up on for."""
    durations: Durations = field(default_factory=Durations)
    """How long it took to handle messages and to publish what came of them."""

    @property
    def messages(self) -> int:
        """The messages that came in and went out, wherever to."""
        return self.handled + self.published + self.retried + self.dead_letters

    def took(self, seconds: float) -> None:
        """Count one message."""
        self.handled += 1
        self.durations.took(seconds)
