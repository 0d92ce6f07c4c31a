"""The waits between requests of history that Interactive Brokers asks for; whoever comes too soon gets no data.

See "Historical Data Limitations" in the documentation of the TWS API.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

from tradeloop.common.clock import Clock

AGAIN_S = 15.0
"""How long the same request may not be made again."""
BURST, BURST_S = 5, 2.0
"""Requests that may be made of one contract in so many seconds."""
MOST, MOST_S = 60, 600.0
"""Requests of bars of 30 seconds or less that may be made in so many seconds."""


class Pacing:
    """The rules, and the requests that were made. `pace` multiplies all times."""

    def __init__(self, clock: Clock, pace: float = 1.0) -> None:
        self._clock, self._pace = clock, pace
        self._asked: dict[Hashable, float] = {}
        self._bursts: dict[Hashable, deque[float]] = {}
        self._small: deque[float] = deque(maxlen=MOST)

    def wait_s(self, contract: Hashable, request: Hashable, *, small: bool) -> tuple[float, str]:
        """How long a request has to wait, and for which rule; 0 for one that may be made."""
        now = self._clock.monotonic()
        burst = self._bursts.get(contract, deque[float]())
        waits = [
            (self._asked.get((contract, request), float("-inf")) + AGAIN_S * self._pace, "the same again in 15 s"),
            (burst[0] + BURST_S * self._pace if len(burst) == BURST else now, "more than 5 in 2 s of one contract"),
        ]
        if small and len(self._small) == MOST:
            waits.append((self._small[0] + MOST_S * self._pace, "more than 60 in ten minutes of bars of 30s or less"))
        until, rule = max(waits)
        return max(until - now, 0.0), rule

    def made(self, contract: Hashable, request: Hashable, *, small: bool) -> None:
        """Remember a request that was made now."""
        now = self._clock.monotonic()
        self._asked = {one: at for one, at in self._asked.items() if now - at < AGAIN_S * self._pace}
        self._asked[contract, request] = now
        self._bursts.setdefault(contract, deque(maxlen=BURST)).append(now)
        if small:
            self._small.append(now)
