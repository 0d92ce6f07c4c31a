"""Points in time as integers: UTC microseconds since the epoch (`_us`)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

EVER_US = 2**63 - 1
"""After all times."""

GRACE = timedelta(minutes=5)
"""How far another machine's clock may be ahead of this one's."""

_MICROSECOND = timedelta(microseconds=1)


def to_us(time: datetime) -> int:
    """Microseconds since the epoch of an aware datetime."""
    return (time - EPOCH) // _MICROSECOND


def from_us(time_us: int) -> datetime:
    """The UTC datetime of microseconds since the epoch."""
    return EPOCH + timedelta(microseconds=int(time_us))


def iso(time: datetime) -> str:
    """`time.isoformat()` of an aware datetime; remembered, since all messages about a bar say the same few times."""
    return _texts(time, time.utcoffset())[0]


def spoken(time: datetime) -> str:
    """`str(time)` of an aware datetime; remembered, as above."""
    return _texts(time, time.utcoffset())[1]


@lru_cache(maxsize=4096)
def _texts(time: datetime, _offset: timedelta | None) -> tuple[str, str]:
    # Equal instants in different zones are equal, and read differently: so the offset is a part of the key.
    return time.isoformat(), str(time)


def check_not_ahead(time: datetime, clock: Clock, what: str) -> None:
    """Raise `UserError` for a time that has not come yet: whoever took it for the newest would ignore all others.

    `what` names the thing that bears the time.
    """
    now = clock.now()
    if time > now + GRACE:
        raise UserError(
            f"{what} is of {time.isoformat()}, and it is {now.isoformat(timespec='seconds')}: correct its source, or "
            "the clock of this machine"
        )
