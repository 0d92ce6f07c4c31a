"""The clocks of servers beside this machine's: no other one may be within reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from tradeloop.cli.doctor.finding import Finding, failed, ok, warning
from tradeloop.common.clock import Clock

_WARN_S, _FAIL_S = 1.0, 30.0


class ServerTime(NamedTuple):
    """A server's time, seconds since the epoch, and how coarsely it tells it."""

    at_s: float
    coarse_s: float


def offset(subject: str, clock: Clock, ask: Callable[[], ServerTime]) -> Iterator[Finding]:
    """How far a server's clock is ahead of this machine's. Half of the round trip is in doubt."""
    before = clock.now().timestamp()
    there = ask()
    after = clock.now().timestamp()
    doubt_s = (after - before) / 2 + there.coarse_s / 2
    ahead_s = there.at_s + there.coarse_s / 2 - (before + after) / 2
    what = f"clock beside {subject}"
    said = f"{abs(ahead_s):.3f} s {'behind' if ahead_s > 0 else 'ahead'}, give or take {doubt_s:.3f} s"
    remedy = "let both machines keep time by NTP (chrony, systemd-timesyncd): decisions have deadlines by the clock"
    beyond_s = abs(ahead_s) - doubt_s
    if beyond_s > _FAIL_S:
        yield failed(what, said, remedy)
    elif beyond_s > _WARN_S:
        yield warning(what, said, remedy)
    else:
        yield ok(what, said)
