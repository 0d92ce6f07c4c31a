"""How patient a live feed is, and what it lets be confirmed."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tradeloop.common.market import Timeframe
from tradeloop.ingest.application.live.line import Pace

_SECOND_US = 1_000_000


class LivePolicy(BaseModel):
    """Settings of live feeds. Seconds are those of the venue's clock."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    grace_s: float = Field(default=10.0, gt=0)
    """How long a frame waits for bars after its close; a quarter of the timeframe at most."""
    confirm: Literal["doubtful", "all"] = "doubtful"
    """Whether the history confirms the bars that are in doubt before they count, or all of them."""
    confirm_after_s: float = Field(default=0.5, ge=0)
    """After the close of a bar in doubt: when its history is asked for."""
    poll_after_s: float = Field(default=2.0, gt=0)
    """After the close of a bar that the stream has not closed: when its history is asked for."""
    flow_after_s: float = Field(default=0.25, ge=0)
    """How long after its close a frame goes out at the soonest where trades, order books or news make columns of its
    bars: what comes of them later is left out. A quarter of the timeframe at most."""
    stall_s: float = Field(default=10.0, gt=0)
    """A silence between two updates that puts a bar in doubt; half of the timeframe at most."""
    fill_s: float = Field(default=60.0, gt=0)
    """How long frames wait for the history of a hole that does not get on."""
    fill_bars: int = Field(default=50_000, ge=1)
    """The longest hole, in bars, that a feed fills by itself: a longer one is backfilled first."""
    check_every_s: float = Field(default=60.0, gt=0)
    """How often stored bars are compared with the history, all since the last time; a bar's time at least."""
    check_share: float = Field(default=1.0, ge=0, le=1)
    """The share of these comparisons that are made."""
    retry_s: float = Field(default=1.0, gt=0)
    """How long a history that was away, or had no news, is left alone at first; twice as long each time."""
    retry_most_s: float = Field(default=30.0, gt=0)
    """The longest that it is left alone."""

    def pace(self, timeframe: Timeframe) -> Pace:
        """The same for one timeframe: short bars leave less time."""
        length_s = float(timeframe.seconds)
        grace_s = min(self.grace_s, length_s / 4)
        return Pace(
            confirm_us=_us(min(self.confirm_after_s, grace_s / 4)),
            poll_us=_us(min(self.poll_after_s, grace_s / 2)),
            stall_us=_us(min(self.stall_s, length_s / 2)),
            grace_us=_us(grace_s),
            fill_us=_us(self.fill_s),
            ahead_bars=1024,
            always_confirm=self.confirm == "all",
            flow_us=_us(min(self.flow_after_s, length_s / 4)),
        )


def _us(seconds: float) -> int:
    return round(seconds * _SECOND_US)
