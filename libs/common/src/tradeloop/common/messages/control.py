"""Messages of operators: what they tell a portfolio to do."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, Field

from tradeloop.common.market import Name
from tradeloop.common.messages.base import UniverseMessage


class PortfolioCommanded(UniverseMessage):
    """An operator's word to a portfolio. Its effect is recorded as a `PortfolioEvent`."""

    request_id: str
    portfolio: Name
    command: Literal["skip", "release"]
    """`skip`: go on without the decision on the bar of `time`. `release`: take decisions again."""
    time: AwareDatetime
    """The close of the bar whose decision is open; of the first one that was not taken, where it is to release. A
    command about anything else has no effect, so that one that comes twice is obeyed once."""
    reason: str = Field(min_length=1)

    @property
    def occurred(self) -> datetime:
        return self.time

    @property
    def identity(self) -> str:
        return self.request_id
