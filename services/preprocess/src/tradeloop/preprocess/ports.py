"""The ports of preprocess, besides the stores of bars and of features."""

from __future__ import annotations

from typing import Protocol

from tradeloop.common.bus.port import LogPosition
from tradeloop.common.market import Universe


class Sent(Protocol):
    """The frames that went out before. Adapter: `bus_sent.BusSent`."""

    def before(self, position: LogPosition, universe: Universe) -> int | None:
        """Open time, in microseconds since the epoch, of the universe's base frame that stands last before a position.

        None when there is none near it. May raise `Unavailable`.
        """
        ...
