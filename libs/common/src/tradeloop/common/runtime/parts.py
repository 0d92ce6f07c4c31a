"""The parts that decide what a service does, named for its manifest; and digests of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from pydantic import BaseModel

from tradeloop.common.addresses import address
from tradeloop.common.portfolio import Portfolio

_OF_A_REPLICA = frozenset({"http", "group_instance_id", "logs", "traces"})
"""Settings that say where a process is seen or how much it tells, and not what it does."""


class _Named(Protocol):
    @property
    def id(self) -> str: ...


class _Decides(Protocol):
    @property
    def feature_set(self) -> _Named: ...


def parts_of(portfolios: Iterable[Portfolio], strategies: Mapping[str, _Decides]) -> Mapping[str, Sequence[str]]:
    """The parts of a service that trades portfolios by these strategies."""
    return {
        "portfolios": [f"{each.name}={digest_of(each)}" for each in portfolios],
        "strategies": list(strategies),
        "feature_sets": sorted({each.feature_set.id for each in strategies.values()}),
    }


@dataclass(frozen=True, slots=True)
class Traded:
    """A portfolio as execution tells of it in its manifest: whose orders it sends where."""

    portfolio: str
    universe: str
    account: str
    venues: tuple[str, ...]

    @classmethod
    def of(cls, portfolio: Portfolio) -> Self:
        venues = sorted({id_.partition(":")[0] for id_ in portfolio.universe.ids})
        return cls(portfolio.name, portfolio.universe.name, portfolio.account, tuple(venues))

    @property
    def line(self) -> str:
        return " ".join((self.portfolio, self.universe, self.account, *self.venues))

    @classmethod
    def read(cls, line: str) -> Self:
        """The portfolio of a `line`."""
        portfolio, universe, account, *venues = line.split(" ")
        return cls(portfolio, universe, account, tuple(venues))


def digest_of(model: BaseModel) -> str:
    """A digest of what a model says, without secrets and what belongs to one replica."""
    return digest(_plain(model.model_dump(mode="json")))


def digest(content: object) -> str:
    """Twelve digits that follow from a content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _plain(value: object) -> object:
    """A value without secrets: those have their type, or stand in a URL."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items() if key not in _OF_A_REPLICA}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return address(value) if isinstance(value, str) else value
