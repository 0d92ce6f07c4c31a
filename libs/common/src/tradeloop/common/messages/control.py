"""Messages of operators: what they tell a portfolio to do."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, Field

from tradeloop.common.market import Name
from tradeloop.common.messages.base import Message, UniverseMessage


class PortfolioCommanded(UniverseMessage):
    """An operator's word to a portfolio. Its effect is recorded as a `PortfolioEvent`."""

    request_id: str
    portfolio: Name
    command: Literal["skip", "release", "kill", "resume"]
    """`skip`: go on without the decision on the bar of `time`. `release`: take decisions again after a quarantine.
    `kill`: cancel all working orders and send none any more. `resume`: lift the kill `about`."""
    time: AwareDatetime
    """The close of the bar whose decision is open; of the first one that was not taken, where it is to release. A
    command about anything else has no effect, so that one that comes twice is obeyed once. Of `kill` and `resume`, the
    time at which it was given, by the clock of the machine; their `request_id` says whether they came before."""
    reason: str = Field(min_length=1)
    by: str = Field(default="", exclude_if=operator.not_)
    """The name of whoever gave it; needed to kill and to resume."""
    flatten: bool = Field(default=False, exclude_if=operator.not_)
    """Whether a `kill` closes the positions, by market orders for the next bar's open, until there are none."""
    about: str = Field(default="", exclude_if=operator.not_)
    """The request of the kill that a `resume` lifts; one about another, or an earlier one, has no effect."""

    @property
    def said(self) -> str:
        """The reason with who gave it, for the record."""
        return f"by {self.by}: {self.reason}" if self.by else self.reason

    @property
    def occurred(self) -> datetime:
        return self.time

    @property
    def identity(self) -> str:
        return self.request_id


class ServiceStarted(Message):
    """A service started: what runs there. Its records name the manifest in their header `tl_manifest`.

    Models are none of it, since they change while it runs: decisions name theirs.
    """

    service: Name
    manifest: str
    """Twelve digits that follow from all but the next two fields: equal for replicas of one deployment."""
    started: AwareDatetime
    """The time of the start by the clock of the machine, unlike all else that is published."""
    instance: str
    """Host and process."""
    version: str
    commit: str
    packages: str
    """Digest of the packages that are installed, with their versions."""
    settings: str
    """Digest of its settings, without secrets and what belongs to one replica."""
    parts: Mapping[str, tuple[str, ...]]
    """The things that decide what it does, by kind: portfolios with the digest of each, strategies, feature sets."""

    @property
    def key(self) -> str:
        return self.service

    @property
    def identity(self) -> str:
        return f"{self.service}|{self.manifest}|{self.started.isoformat()}|{self.instance}"
