"""The ports of preprocess, besides the stores of bars and of features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from tradeloop.common.bus.port import LogPosition
from tradeloop.common.market import Universe
from tradeloop.common.messages import BarFrame


class Sent(Protocol):
    """The frames that went out before. Adapter: `bus_sent.BusSent`."""

    def before(self, position: LogPosition, universe: Universe, open_us: int) -> Iterator[BarFrame]:
        """The universe's frames, corrections among them, that went out before the base frame that opened at `open_us`,
        the last one first, as far as some thousand records go back.

        `position` is where that one stands: in the topic of frames, or elsewhere, where it is tried again; there are
        none where it is not found. Times are microseconds since the epoch. May raise `Unavailable`.
        """
        ...
