"""The faults of a fake venue, by chance of a seed or on command. All of them can change while it runs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import numpy as np


@dataclass
class Faults:
    """Rates are shares from 0 to 1. As made, a venue is slow to nobody and loses nothing."""

    seed: int = 0

    page_limit: int | None = None
    """Rows that a page of history has at most, below what the protocol allows."""
    open_bar: bool = True
    """Whether history ends with the bar that is still open, as that of most venues does."""

    slow_s: float = 0.0
    """How long every answer takes."""
    requests_a_minute: int | None = None
    """The rate limit, by the machine's clock; what goes beyond it gets 429 and the time that is left to wait."""
    rate_limited: float = 0.0
    """The share of requests that get 429 though they are few."""
    retry_after_s: float = 1.0
    """The `Retry-After` of such answers."""
    server_errors: float = 0.0
    """The share of requests that get 500."""
    maintenance: bool = False
    """Whether the venue is closed: 503 for requests and for new sockets; open ones go on."""
    garbled_answers: float = 0.0
    """The share of answers that end in the middle of their JSON."""
    denied: bool = False
    """Whether the key lacks the permission for market data."""
    clock_ahead_s: float = 0.0
    """How far the clock that the venue tells is ahead of its bars."""

    connection_limit: int | None = None
    """Sockets that may be open at once; the protocols that have a word for it say it to whoever comes too late."""
    symbol_limit: int | None = None
    """Symbols that one socket may subscribe to, where the protocol has a word for too many."""
    disconnects: float = 0.0
    """The share of frames in whose middle the connection breaks."""
    malformed: float = 0.0
    """The share of frames that end in the middle of their text."""
    repeated: float = 0.0
    """The share of frames that come twice."""
    reordered: float = 0.0
    """The share of frames that come after the next one."""
    missing: float = 0.0
    """The share of frames that never come, while heartbeats do."""
    lying_closed: float = 0.0
    """The share of updates of open bars that say that the bar is closed; where a protocol streams closed bars alone,
    the share of the seconds of a bar after which the unfinished one comes as if it were closed."""

    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _storm: tuple[int, int] = field(default=(0, 429), init=False, repr=False)
    _stalled: tuple[float, bool] = field(default=(0.0, False), init=False, repr=False)
    _asked: deque[float] = field(default_factory=deque, init=False, repr=False)
    _disconnect: list[Callable[[bool], None]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self._chance = np.random.default_rng(self.seed)

    def change(self, **values: object) -> None:
        """Set fields by name. Raises `ValueError`, and changes nothing, for a name or a value that does not fit."""
        known = {one.name: one for one in fields(self) if one.init and one.name != "seed"}
        for name, value in values.items():
            if name not in known:
                raise ValueError(f"a fake venue has no fault {name}: those that it has are {', '.join(sorted(known))}")
            default = known[name].default
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
            if isinstance(default, bool):
                fits = isinstance(value, bool)
            elif default is None:
                fits = value is None or (number and isinstance(value, int))
            else:
                fits = number
            if not fits:
                raise ValueError(f"the fault {name} cannot be {value!r}")
        for name, value in values.items():
            setattr(self, name, value)

    def storm(self, requests: int, status: int = 429) -> None:
        """Refuse the next requests, whatever they are: 429, or 418 for a ban."""
        with self._lock:
            self._storm = (requests, status)

    def stall(self, seconds: float = float("inf"), *, deaf: bool = False) -> None:
        """Send no frame for so long: those of this time are lost. Pings are answered, unless the venue is `deaf`."""
        self._stalled = (time.monotonic() + seconds, deaf)

    def resume(self) -> None:
        """End a stall."""
        self._stalled = (0.0, False)

    def disconnect_now(self, *, mid_frame: bool = True) -> None:
        """Break all sockets, in the middle of a frame or between two."""
        for disconnect in self._disconnect:
            disconnect(mid_frame)

    @property
    def stalled(self) -> bool:
        return time.monotonic() < self._stalled[0]

    @property
    def deaf(self) -> bool:
        return self.stalled and self._stalled[1]

    def happens(self, rate: float) -> bool:
        """Whether chance has it. A rate of 0 draws nothing."""
        if rate <= 0.0:
            return False
        with self._lock:
            return bool(self._chance.random() < rate)

    def refusal(self) -> tuple[int, float | None] | None:
        """The status, and the seconds of `Retry-After`, of a request that is refused; None for one that is heard."""
        with self._lock:
            left, status = self._storm
            if left > 0:
                self._storm = (left - 1, status)
                return status, self.retry_after_s
        if self.maintenance:
            return 503, None
        if wait := self._over_limit():
            return 429, wait
        if self.happens(self.rate_limited):
            return 429, self.retry_after_s
        if self.happens(self.server_errors):
            return 500, None
        return None

    def _over_limit(self) -> float:
        """Seconds until the next request is allowed; 0 if this one is, which then counts."""
        if self.requests_a_minute is None:
            return 0.0
        now = time.monotonic()
        with self._lock:
            while self._asked and self._asked[0] <= now - 60.0:
                self._asked.popleft()
            if len(self._asked) >= self.requests_a_minute:
                return max(60.0 - (now - self._asked[0]), 0.001) if self._asked else 60.0
            self._asked.append(now)
        return 0.0
