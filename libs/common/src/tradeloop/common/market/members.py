"""Membership in time: which instruments of a universe belong to it at a moment, as was known then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, model_validator

from tradeloop.common.market.instants import EVER_US, spoken, to_us


class Membership(BaseModel):
    """A time `[start, end)` in which an instrument belongs to its universe; without an end it still does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: AwareDatetime
    end: AwareDatetime | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Membership:
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"a membership ends ({self.end}) before it starts ({self.start})")
        return self


Members = Mapping[str, tuple[Membership, ...]]
"""The memberships of instruments by their ids, in the order of time. An instrument that lacks any never belongs."""


def check_members(members: Members, ids: Sequence[str]) -> None:
    """Raise `ValueError` for memberships of an instrument that is not among these, out of order, or that overlap."""
    if strangers := [name for name in members if name not in ids]:
        raise ValueError(f"memberships of {', '.join(strangers[:3])}, which is no instrument of the universe")
    for name, stays in members.items():
        for one, other in pairwise(stays):
            if one.end is None or other.start < one.end:
                until = "for ever" if one.end is None else f"until {spoken(one.end)}"
                raise ValueError(
                    f"{name} is a member from {spoken(one.start)} {until}, and from {spoken(other.start)} again: "
                    "memberships of an instrument follow each other and do not overlap"
                )


class Roster:
    """Says who belongs to a universe at which moment. Without memberships all of its instruments always do, until they
    are delisted."""

    def __init__(self, ids: Sequence[str], members: Members, ends_us: Mapping[str, int] | None = None) -> None:
        """`ends_us` are the times of delistings, by instrument."""
        self._ids, ends = tuple(ids), ends_us or {}
        self.is_open = not members and not ends
        """Whether all instruments always belong."""
        self._stays = []
        for name in ids:
            stays = [
                (to_us(one.start), EVER_US if one.end is None else to_us(one.end)) for one in members.get(name, ())
            ]
            whole = stays if members else [(-EVER_US, EVER_US)]
            end_us = ends.get(name, EVER_US)
            self._stays.append([(first_us, min(last_us, end_us)) for first_us, last_us in whole if first_us < end_us])

    def stays(self, name: str) -> Sequence[tuple[int, int]]:
        """The times `[start, end)` in which an instrument belongs, in microseconds since the epoch."""
        return self._stays[self._ids.index(name)]

    def outside(self, time_us: int) -> tuple[str, ...]:
        """The instruments that do not belong at a moment."""
        if self.is_open:
            return ()
        return tuple(
            name
            for name, stays in zip(self._ids, self._stays, strict=True)
            if not any(start_us <= time_us < end_us for start_us, end_us in stays)
        )

    def inside(self, time_us: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which instruments belong at moments (T,), as (T, A)."""
        belongs = np.full((len(time_us), len(self._ids)), self.is_open)
        for a, stays in enumerate(self._stays):
            for start_us, end_us in stays:
                belongs[:, a] |= (start_us <= time_us) & (time_us < end_us)
        return belongs
