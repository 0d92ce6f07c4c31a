"""`Simulator`: N books, the words for what they hold, and what can be done with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isnan
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.arrays import Bools, Codes, Float32s, Floats, Ints
from tradeloop.common.market import BarArrays, Instrument, Universe
from tradeloop.common.portfolio import Costs, RiskLimits
from tradeloop.common.simulation import kernels, pointers
from tradeloop.common.strategy.observations import account_size
from tradeloop.common.strategy.rewards import RewardContext


class KernelParameters(NamedTuple):
    """The parameters of instruments, costs and limits that the kernels read. Fractions, not basis points."""

    lot: Floats
    tick: Floats
    min_notional: Floats
    fee: Floats
    capital: float
    slippage: float
    impact: float
    max_participation: float
    """0 for no cap."""
    band: float
    max_position: float
    max_leverage: float
    max_order_notional: float
    max_drawdown: float
    max_age: float
    maintenance: float


class Market:
    """Bars as the kernels read them: `open`, `close`, `volume`, `funding_rate`, `present` and `barred`, (T, A) each.

    The first four are views of one block, `bars` (T, A, 4), so that a bar lies in one line of the cache. `barred` says
    what keeps an instrument from being traded, as bits that `kernels` names; where it is delisted at the open of a bar,
    it has no bar there, and `open` is what a unit of it gets.
    """

    __slots__ = ("barred", "bars", "close", "funding_rate", "open", "present", "volume")

    def __init__(
        self,
        open: Floats,
        close: Floats,
        volume: Floats,
        funding_rate: Floats,
        present: NDArray[np.bool_],
        barred: Codes | Bools | None = None,
    ) -> None:
        self.bars = np.stack((open, close, volume, funding_rate), axis=-1)
        self.open, self.close, self.volume, self.funding_rate = np.moveaxis(self.bars, -1, 0)
        self.present = np.array(present)
        self.barred = np.zeros(self.present.shape, dtype=np.int8) if barred is None else np.array(barred, dtype=np.int8)


class Books(NamedTuple):
    """The state of N books, and what the last step did to them. `_prev` is the mark before the last."""

    cash: Floats
    equity: Floats
    equity_prev: Floats
    peak: Floats
    drawdown: Floats
    unrealised: Floats
    traded: Floats
    turnover: Floats
    fees: Floats
    slippage: Floats
    funding: Floats
    halt_measured: Floats
    """The quantity that was measured when the book was halted."""
    worth: Floats
    """The equity that a reward sees: at least `LEAST_EQUITY` of the capital."""
    worth_prev: Floats
    outside: Floats
    """Not 0 where anything keeps an instrument from being traded."""
    position: Floats
    position_prev: Floats
    entry: Floats
    mark: Floats
    mark_prev: Floats
    age: Floats
    """Frames since each instrument's last bar."""
    holding: Floats
    pending: Floats
    """Signed quantities that fill at the next open."""
    fill_quantity: Floats
    """Signed; 0 where nothing filled."""
    fill_price: Floats
    fill_fee: Floats
    fill_slippage: Floats
    measured: Floats
    """The quantity that the risk gate measured of each order that it denied."""
    limit: Floats
    """The limit that this broke."""
    barred: Floats
    """The reasons that keep an instrument from being traded at the close, as bits."""
    halt: NDArray[np.int8]
    verdict: NDArray[np.int8]
    account: Floats
    """The account part of the observation, (N, 3A + 1)."""


class TrainingBars(NamedTuple):
    """Bars that episodes are cut from, and the features that go with them."""

    market: Market
    close_us: Ints
    seen: Float32s
    """Features as the policy sees them, (T, A * F)."""
    window: int
    """Bars of features in an observation."""


class EpisodeCursors(NamedTuple):
    """Where N books are in the bars, (N,) each."""

    rows: Ints
    """The bar at which each is marked."""
    ends: Ints
    """The bar at which its episode is truncated."""
    ts_prev: Ints
    ts: Ints
    terminated: Bools
    truncated: Bools


def market_of(bars: BarArrays, universe: Universe | None = None) -> Market:
    """Bars as the kernels read them; the universe says who belongs to it at each, is halted, or is delisted."""
    if universe is None or not (universe.members or universe.events):
        return Market(bars.open, bars.close, bars.volume, bars.funding_rate, bars.present)
    force = universe.in_force
    barred = np.zeros(bars.present.shape, dtype=np.int8)
    settled = force.delisted_at(bars.open_us)
    for bit, where in (
        (kernels.OUTSIDE, ~universe.roster.inside(bars.close_us)),
        (kernels.RESTING, force.halted_at(bars.close_us)),
        (kernels.SHUT, force.halted_at(bars.open_us)),
        (kernels.ENDED, force.delisted_at(bars.close_us)),
        (kernels.SETTLED, settled),
    ):
        barred[where] |= bit
    opened = np.where(settled, force.proceeds, bars.open)
    return Market(opened, bars.close, bars.volume, bars.funding_rate, bars.present & ~settled, barred)


class Simulator:
    """N books of the same instruments, costs and limits.

    `books` may be read at any time; its arrays are written in place by every call.
    """

    def __init__(
        self,
        books: int,
        instruments: Sequence[Instrument],
        *,
        capital: float,
        costs: Costs,
        limits: RiskLimits,
        no_trade_band: float,
    ) -> None:
        if not 0.0 <= no_trade_band < np.inf:
            raise ValueError(f"a no-trade band is {no_trade_band}: it must be a number of at least 0")
        count = len(instruments)
        self._shape = (books, count)
        self._every = np.arange(books)
        self.terms = KernelParameters(
            lot=np.array([i.lot_size for i in instruments]),
            tick=np.array([i.tick_size for i in instruments]),
            min_notional=np.array([i.min_notional for i in instruments]),
            fee=np.array([i.taker_bps * costs.fee_multiplier / 1e4 for i in instruments]),
            capital=float(capital),
            slippage=costs.slippage_bps / 1e4,
            impact=costs.impact_bps / 1e4,
            max_participation=costs.max_participation or 0.0,
            band=float(no_trade_band),
            max_position=limits.max_position,
            max_leverage=limits.max_leverage,
            max_order_notional=limits.largest_order,
            max_drawdown=limits.max_drawdown,
            max_age=float(limits.max_price_age_bars),
            maintenance=limits.maintenance_margin,
        )
        self.sums = np.zeros((len(kernels.SUMS), books))
        """The fields of `books` that are one amount for each book, in the order of `kernels.SUMS`."""
        legs = np.zeros((len(kernels.LEGS), books, count))
        halt, verdict = np.zeros(books, dtype=np.int8), np.zeros((books, count), dtype=np.int8)
        account = np.zeros((books, account_size(count)))
        self.books = Books(
            **dict(zip(kernels.SUMS, self.sums, strict=True)),
            **dict(zip(kernels.LEGS, legs, strict=True)),
            halt=halt,
            verdict=verdict,
            account=account,
        )
        self.books.cash[:] = self.books.equity[:] = self.books.worth[:] = self.books.peak[:] = capital
        self.books.mark[:] = np.nan
        self._memory = (self.sums, legs, halt, verdict, account, *self._parameters())
        self._no_weights = np.empty((0, count))
        self._no_rows = np.empty(0, dtype=np.int64)
        nothing = self._no_weights
        self._no_market = Market(nothing, nothing, nothing, nothing, nothing.astype(np.bool_))

    def _parameters(self) -> tuple[Floats, Floats]:
        """The kernels' `rules` (4, A) and `limits` (11,)."""
        rules = np.array([getattr(self.terms, name) for name in kernels.RULES])
        return rules, np.array([getattr(self.terms, name) for name in kernels.LIMITS])

    def reset(self, market: Market, rows: Ints, which: Ints | None = None) -> None:
        """Start the books (all, or `which`) anew, marked at the close of their rows."""
        self._run(kernels.DO_RESET | kernels.DO_SETTLE, market, rows, which)

    def decide(self, weights: Floats) -> None:
        """Size every book towards `weights` (N, A); NaN leaves a position as it is. Fills `pending` and `verdict`.

        Raises ValueError for another shape.
        """
        self._run(kernels.DO_DECIDE, weights=weights)

    def fill_and_mark(self, market: Market, rows: Ints) -> None:
        """Fill what is pending at the open of each book's row, and mark the books at its close."""
        self._run(kernels.DO_SETTLE, market, rows)

    def fill(self, market: Market, rows: Ints) -> None:
        """The first half of `fill_and_mark`, the venue's: `fill_*` say what the pending orders got."""
        self._run(kernels.DO_FILL, market, rows)

    def account(self, market: Market, rows: Ints) -> None:
        """The second half of `fill_and_mark`, the owner's: book what `fill_*` say, and mark."""
        self._run(kernels.DO_ACCOUNT | kernels.DO_MARK, market, rows)

    def step(self, market: Market, rows: Ints, weights: Floats) -> None:
        """`decide`, then `fill_and_mark` on the next row; `rows` moves on by one, in place."""
        self._run(kernels.DO_STEP, market, rows, weights=weights)

    def bind(self, bars: TrainingBars, cursors: EpisodeCursors, weights: Floats, out: Float32s) -> Callable[[], int]:
        """A whole step in one cheap call: `step` towards `weights` (N, A) along the bars, observed into `out` (N, n).

        The call returns how many episodes ended; `cursors` say which. All arrays are read and written in place.
        Raises ValueError for arrays that do not fit.
        """
        books, count = self._shape
        market, length, width = bars.market, *bars.seen.shape
        size = bars.window * width + account_size(count)
        expected: list[tuple[NDArray[Any], tuple[int, ...], type[np.generic]]] = [
            (market.bars, (length, count, 4), np.float64),
            (market.present, (length, count), np.bool_),
            (market.barred, (length, count), np.int8),
            (bars.close_us, (length,), np.int64),
            (bars.seen, (length, width), np.float32),
            *((array, (books,), np.int64) for array in cursors[:4]),
            *((array, (books,), np.bool_) for array in cursors[4:]),
            (self._every, (books,), np.int64),
            (weights, (books, count), np.float64),
            (out, (books, size), np.float32),
        ]
        for array, shape, dtype in expected:
            if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
                raise ValueError(f"an array of shape {shape} and type {dtype.__name__} is {array.shape} {array.dtype}")
        arrays: list[NDArray[Any]] = [*self._memory, *(array for array, _, _ in expected)]
        table = np.array([books, count, length, width, bars.window, size, *(array.ctypes.data for array in arrays)])
        function, address = pointers.compiled_advance(), table.ctypes.data

        def advance(_alive: object = (table, arrays)) -> int:
            return function(address)

        return advance

    def _check(self, weights: Floats) -> None:
        if weights.shape != self._shape:  # the kernels check no bounds
            raise ValueError(f"weights have the shape {weights.shape}; it must be {self._shape}")

    def _run(
        self,
        phases: int,
        market: Market | None = None,
        rows: Ints | None = None,
        which: Ints | None = None,
        weights: Floats | None = None,
    ) -> None:
        if weights is None:
            weights = self._no_weights
        else:
            self._check(weights)
        market = market or self._no_market
        kernels.run(
            phases,
            *self._memory,
            market.bars,
            market.present,
            market.barred,
            self._no_rows if rows is None else rows,
            self._every if which is None else which,
            weights,
        )

    def context(
        self,
        action: Floats,
        ts_prev: Ints,
        ts: Ints,
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        features: Mapping[str, Floats],
    ) -> RewardContext:
        """The last step, as a reward sees it. Its arrays are the books' own: valid until the next step."""
        b = self.books
        return RewardContext(
            equity_prev=b.worth_prev,
            equity=b.worth,
            position_prev=b.position_prev,
            position=b.position,
            action=action,
            price_prev=b.mark_prev,
            price=b.mark,
            traded_notional=b.traded,
            turnover=b.turnover,
            fees=b.fees,
            slippage=b.slippage,
            funding=b.funding,
            drawdown=b.drawdown,
            unrealised=b.unrealised,
            holding_bars=b.holding,
            terminated=terminated,
            truncated=truncated,
            ts_prev=ts_prev,
            ts=ts,
            features=features,
        )

    def snapshot(self, book: int = 0) -> dict[str, Any]:
        """Everything that one book remembers from bar to bar, ready for JSON: None is a price not yet known."""
        remembered = {name: getattr(self.books, name)[book].tolist() for name in _REMEMBERED}
        return remembered | {"mark": [None if isnan(price) else price for price in remembered["mark"]]}

    def restore(self, snapshot: Mapping[str, Any], book: int = 0) -> None:
        """Put a book back to where a snapshot was taken."""
        for name in _REMEMBERED:
            getattr(self.books, name)[book] = snapshot.get(name, 0.0)  # one of before lacks what is new
        self._run(kernels.DO_MARK, which=self._every[book : book + 1])


def observe(features: Float32s, window: int, rows: Ints, account: Floats, out: Float32s) -> Float32s:
    """Observations of N books at their rows into `out` (N, n), from features (T, A * F) and accounts (N, 3A + 1)."""
    kernels.observe(features, window, rows, account, out)
    return out


_REMEMBERED = (
    "cash",
    "peak",
    "halt",
    "position",
    "entry",
    "mark",
    "age",
    "holding",
    "pending",
    "verdict",
    "barred",
    "outside",
)
