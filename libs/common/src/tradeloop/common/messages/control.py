"""Messages of operators: what they tell a portfolio to do."""

from __future__ import annotations

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
