"""Facts of instruments that frames say beside bars: who does not belong, who is halted, who is delisted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tradeloop.common.market import Universe


@dataclass(frozen=True, slots=True)
class Told:
    """The facts of one bar."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    """The fields of its frame."""
    away: frozenset[str] = frozenset()
    """Instruments of which no bar is due."""


NOTHING = Told()


class Facts:
    """The memberships and events of a universe, bar by bar."""

    def __init__(self, universe: Universe) -> None:
        self._roster, self._force = universe.roster, universe.in_force

    def at(self, open_us: int, close_us: int) -> Told:
        """The facts of a bar: an event is in force from its time on."""
        if self._force.is_empty:
            if self._roster.is_open:
                return NOTHING
            outside = self._roster.outside(close_us)
            return Told({"outside": outside}, frozenset(outside))
        outside = () if self._roster.is_open else self._roster.outside(close_us)
        halted, shut = self._force.halted(close_us), self._force.halted(open_us)
        fields: dict[str, Any] = {"halted": halted, "shut": shut, "delisted": self._force.delisted(close_us)}
        if not self._roster.is_open:
            fields["outside"] = outside
        return Told(fields, frozenset((*outside, *halted, *shut)))

    def away(self, open_us: int, close_us: int) -> frozenset[str]:
        """Instruments of which no bar is due."""
        return self.at(open_us, close_us).away
