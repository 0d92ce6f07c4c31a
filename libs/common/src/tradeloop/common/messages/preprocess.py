"""Messages of the features: asked for, computed for a range, and those of one bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Self

from pydantic import AwareDatetime

from tradeloop.common.market import Name, TimeRange, Universe, iso
from tradeloop.common.messages.base import UniverseMessage, UniverseRequest


class PreprocessRequested(UniverseRequest):
    """Compute a strategy's features over stored bars, into the offline feature store: those that are not there yet."""

    strategy: Name
    range: TimeRange
    force: bool = False
    """Compute all of them, those too that are there and whose bars are as they were."""


class PreprocessCompleted(UniverseRequest):
    """Features of a range are in the offline feature store."""

    strategy: Name
    feature_set: str
    range: TimeRange
    rows: int
    """Rows of the range that are stored now."""
    reused: int = 0
    """As many of them were stored before, from bars that are as they were."""


class FeaturesComputed(UniverseMessage):
    """Features as of a bar's close. `values[a][f]` is feature `names[f]` of `instruments[a]`, unscaled.

    None stands for a value that is not known yet: its indicator is still warming up.
    """

    feature_set: str
    time: AwareDatetime
    instruments: tuple[str, ...]
    names: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    error: str = ""
    """Why no value is known, where a feature failed."""

    @classmethod
    def of(
        cls,
        universe: Universe,
        feature_set: str,
        names: tuple[str, ...],
        time: datetime,
        values: Sequence[Sequence[float]],
    ) -> Self:
        """The features of one bar, (A, F), NaN where one is not known yet; `time` is the bar's close."""
        return cls(
            universe=universe.name,
            feature_set=feature_set,
            time=time,
            instruments=universe.ids,
            names=names,
            values=tuple(tuple(None if math.isnan(value) else value for value in row) for row in values),
        )

    def unknown(self, error: str) -> Self:
        """The same features with no value known, and why."""
        nothing = ((None,) * len(self.names),) * len(self.instruments)
        return self.model_copy(update={"values": nothing, "error": error})

    @property
    def occurred(self) -> datetime:
        return self.time

    @property
    def identity(self) -> str:
        return f"{self.universe}|{self.feature_set}|{iso(self.time)}"
