"""The inputs of a book: frames as arrays, fills as the venue reports them, features by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tradeloop.common.arrays import Floats
from tradeloop.common.messages import BarFrame
from tradeloop.common.simulation import Market, kernels

Outcome = Literal["policy", "warming_up", "no_model", "no_features", "missed", "quarantined", "killed"]
"""The fate of a decision: the policy's, held for a reason, or that it did not count."""


@dataclass(frozen=True, slots=True)
class VenueFill:
    """A fill as the venue reports it."""

    order_id: str
    trade: int
    """The venue's number of this fill within the order, from 1."""
    instrument: int
    """Its index in the universe."""
    quantity: float
    """Signed, negative for a sale."""
    price: float
    fee: float
    slippage: float


class FrameReader:
    """Turns frames into the arrays (1, A) that the simulator reads. The arrays are reused."""

    def __init__(self, instruments: Sequence[str]) -> None:
        self._index = {instrument: a for a, instrument in enumerate(instruments)}
        shape = (1, len(instruments))
        self.market = Market(
            open=np.full(shape, np.nan),
            close=np.full(shape, np.nan),
            volume=np.full(shape, np.nan),
            funding_rate=np.zeros(shape),
            present=np.zeros(shape, dtype=np.bool_),
            barred=np.zeros(shape, dtype=np.int8),
        )

    def read(self, frame: BarFrame) -> Market:
        """The bars of a frame, and what keeps instruments from being traded; those of other universes are ignored."""
        market = self.market
        market.present[:] = False
        market.barred[:] = 0
        for bit, names in (
            (kernels.OUTSIDE, frame.outside or ()),
            (kernels.RESTING, frame.halted),
            (kernels.SHUT, frame.shut),
            (kernels.ENDED, [one.instrument for one in frame.delisted]),
        ):
            for name in names:
                if name in self._index:
                    market.barred[0, self._index[name]] |= bit
        for bar in frame.bars:
            a = self._index.get(bar.instrument)
            if a is None:
                continue
            market.present[0, a] = True
            market.open[0, a], market.close[0, a] = bar.open, bar.close
            market.volume[0, a] = np.nan if bar.volume is None else bar.volume
            market.funding_rate[0, a] = bar.funding_rate
        for one in frame.delisted:
            if one.time <= frame.open_time and (a := self._index.get(one.instrument)) is not None:
                market.barred[0, a] |= kernels.SETTLED
                market.present[0, a], market.open[0, a] = False, one.proceeds
        return market


class DecisionFeatures(Mapping[str, Floats]):
    """A decision's features by name, (1, A) each, made into an array only when asked for."""

    def __init__(self, names: Sequence[str], values: Sequence[Sequence[float]]) -> None:
        self._names, self._values = names, values

    def __getitem__(self, name: str) -> Floats:
        if name not in self._names:
            raise KeyError(name)
        f = self._names.index(name)
        return np.array([[row[f] for row in self._values]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
