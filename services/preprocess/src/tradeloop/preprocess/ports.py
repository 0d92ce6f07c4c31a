"""The ports of preprocess, besides the stores of bars and of features."""

from __future__ import annotations

from typing import Protocol

from tradeloop.common.bus.port import LogPosition
from tradeloop.common.market import Universe


class Sent(Protocol):
    """The frames that went out before. Adapter: `bus_sent.BusSent`."""

    def before(self, position: LogPosition, universe: Universe, open_us: int) -> int | None:
        """Open time of the universe's base frame that went out before the one that opened at `open_us`.

        `position` is where that one stands: in the topic of frames, or elsewhere, where it is tried again. Times are
        microseconds since the epoch. None when there is none near it. May raise `Unavailable`.
        """
        ...
