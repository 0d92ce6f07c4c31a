"""The simulator: sizing, risk gate, fills, costs and accounting of N books x A instruments.

One set of kernels serves the training environments (N many), the backtest and the paper venue (N = 1), so
that the same decisions on the same bars give the same orders and the same equity to the last bit.

A bar's life, for one book:

    decide   at the close of bar t: target weights -> quantities, rounded, through the risk gate -> pending orders
    settle   on bar t + 1: pending orders fill at its open, the book is marked at its close

Orders are market orders that live for one bar: what the bar cannot fill is cancelled, since the next decision
sizes anew. A book whose drawdown or margin breaks its limit is halted: its positions are closed at the next
open, and nothing is opened any more.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from math import ceil, copysign, floor, isnan, sqrt
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from tradeloop.common.market import BarArrays, Instrument
from tradeloop.common.observations import HOLDING_SCALE, account_size
from tradeloop.common.portfolio import Costs, RiskLimits
from tradeloop.common.rewards import RewardContext

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Float32s = NDArray[np.float32]
Codes = NDArray[np.int8]
F = TypeVar("F")


class Verdict(IntEnum):
    """What became of a target. Names in lower case are the stable codes on `execution.risk.v1`."""

    UNCHANGED = 0
    """The position is where it should be, within the no-trade band and the venue's smallest order."""
    ORDERED = 1
    FLATTENED = 2
    """The halt closes the position."""
    STALE_PRICE = 3
    MAX_ORDER_NOTIONAL = 4
    MAX_POSITION = 5
    MAX_LEVERAGE = 6
    HALTED = 7


DENIED = frozenset(
    {Verdict.STALE_PRICE, Verdict.MAX_ORDER_NOTIONAL, Verdict.MAX_POSITION, Verdict.MAX_LEVERAGE, Verdict.HALTED}
)
"""Verdicts that stop an order."""


class Halt(IntEnum):
    """Why a book is halted."""

    NONE = 0
    DRAWDOWN = 1
    MARGIN_CALL = 2


class Terms(NamedTuple):
    """What the kernels need to know of instruments, costs and limits. Fractions, not basis points."""

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
    """In quote currency."""
    max_drawdown: float
    max_age: float
    maintenance: float


class Market:
    """Bars as the kernels read them: `open`, `close`, `volume`, `funding_rate` and `present`, (T, A) each.

    The first four are views of one block, `bars` (T, A, 4), so that a bar lies in one line of the cache.
    """

    __slots__ = ("bars", "close", "funding_rate", "open", "present", "volume")

    def __init__(
        self, open: Floats, close: Floats, volume: Floats, funding_rate: Floats, present: NDArray[np.bool_]
    ) -> None:
        self.bars = np.stack((open, close, volume, funding_rate), axis=-1)
        self.open, self.close, self.volume, self.funding_rate = np.moveaxis(self.bars, -1, 0)
        self.present = np.array(present)


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
    halt: NDArray[np.int8]
    verdict: NDArray[np.int8]
    account: Floats
    """The account part of the observation, (N, 3A + 1)."""


class Course(NamedTuple):
    """What the books of a training walk through: bars, and the features that go with them."""

    market: Market
    close_us: Ints
    seen: Float32s
    """Features as the policy sees them, (T, A * F)."""
    window: int
    """Bars of features in an observation."""


class Walk(NamedTuple):
    """Where N books are on their course, (N,) each."""

    rows: Ints
    """The bar at which each is marked."""
    ends: Ints
    """The bar at which its episode is truncated."""
    ts_prev: Ints
    ts: Ints
    terminated: Bools
    truncated: Bools


# The kernels read and write blocks of memory, since a call costs by the number of its arrays. What `Books`, `Terms`
# and `Market` call by name is there:
_CASH, _EQUITY, _EQUITY_PREV, _PEAK, _DRAWDOWN, _UNREALISED, _TRADED, _TURNOVER, _FEES, _SLIPPAGE, _FUNDING = range(11)
"""Of `sums` (11, N)."""
_POSITION, _POSITION_PREV, _ENTRY, _MARK, _MARK_PREV, _AGE, _HOLDING, _PENDING = range(8)
_FILL_QUANTITY, _FILL_PRICE, _FILL_FEE, _FILL_SLIPPAGE = range(8, 12)
"""Of `legs` (12, N, A)."""
_LOT, _TICK, _MIN_NOTIONAL, _FEE_RATE = range(4)
"""Of `rules` (4, A)."""
_CAPITAL, _SLIPPAGE_RATE, _IMPACT, _MAX_PARTICIPATION, _BAND, _MAX_POSITION, _MAX_LEVERAGE = range(7)
_MAX_ORDER_NOTIONAL, _MAX_DRAWDOWN, _MAX_AGE, _MAINTENANCE = range(7, 11)
"""Of `limits` (11,)."""
_OPEN, _CLOSE, _VOLUME, _FUNDING_RATE = range(4)
"""Of `bars` (T, A, 4)."""


def _kernel(function: F) -> F:
    """Compile without fast math: strict IEEE order of operations is what makes the paths agree bit for bit."""
    return cast(F, njit(cache=True, nogil=True, error_model="numpy")(function))


@_kernel
def _grows(position: float, target: float) -> bool:
    """Whether going there opens exposure: a larger position, or one on the other side."""
    return abs(target) > abs(position) or target * position < 0.0


@_kernel
def _decide(
    sums: Floats, legs: Floats, halt: Codes, verdict: Codes, rules: Floats, limits: Floats, weights: Floats
) -> None:
    """Size every book towards `weights` (N, A); NaN leaves a position as it is."""
    instruments = weights.shape[1]
    for n in range(weights.shape[0]):
        equity = sums[_EQUITY, n]
        gross = 0.0
        for a in range(instruments):
            position, price, weight = legs[_POSITION, n, a], legs[_MARK, n, a], weights[n, a]
            quantity = 0.0
            code = 0
            if halt[n] != 0:
                if position != 0.0:
                    quantity, code = -position, 2
                elif weight != 0.0 and not isnan(weight):
                    code = 7
            elif not isnan(weight) and not isnan(price):
                gap = weight - position * price / equity
                if abs(gap) >= limits[_BAND] or (weight == 0.0 and position != 0.0):
                    target = weight * equity / price
                    lot = rules[_LOT, a]
                    if lot > 0.0:
                        target = copysign(floor(abs(target) / lot + 1e-9) * lot, target)
                    quantity = target - position
                    if abs(quantity) < 0.5 * lot or quantity == 0.0 or abs(quantity) * price < rules[_MIN_NOTIONAL, a]:
                        quantity = 0.0
                    elif legs[_AGE, n, a] > limits[_MAX_AGE]:
                        quantity, code = 0.0, 3
                    elif abs(quantity) * price > limits[_MAX_ORDER_NOTIONAL]:
                        quantity, code = 0.0, 4
                    elif _grows(position, target) and abs(target) * price > limits[_MAX_POSITION] * equity:
                        quantity, code = 0.0, 5
                    else:
                        code = 1
            legs[_PENDING, n, a] = quantity
            verdict[n, a] = code
            if not isnan(price):
                gross += abs(position + quantity) * price
        if gross > limits[_MAX_LEVERAGE] * equity and halt[n] == 0:
            for a in range(instruments):
                position, quantity = legs[_POSITION, n, a], legs[_PENDING, n, a]
                if _grows(position, position + quantity):
                    legs[_PENDING, n, a] = 0.0
                    verdict[n, a] = 6


@_kernel
def _mark(sums: Floats, legs: Floats, halt: Codes, account: Floats, limits: Floats, which: Ints) -> None:
    """Value the books `which` at their marks, and halt those that break a limit."""
    instruments = legs.shape[2]
    for n in which:
        equity = sums[_CASH, n]
        gross = unrealised = 0.0
        for a in range(instruments):
            position = legs[_POSITION, n, a]
            if position != 0.0:
                value = position * legs[_MARK, n, a]
                equity += value
                gross += abs(value)
                unrealised += value - position * legs[_ENTRY, n, a]
        sums[_EQUITY, n] = equity
        sums[_UNREALISED, n] = unrealised
        sums[_PEAK, n] = max(sums[_PEAK, n], equity)
        sums[_DRAWDOWN, n] = 1.0 - equity / sums[_PEAK, n]
        for a in range(instruments):
            position, mark = legs[_POSITION, n, a], legs[_MARK, n, a]
            held = legs[_HOLDING, n, a]
            account[n, a] = position * mark / equity if position != 0.0 and equity > 0.0 else 0.0
            gain = mark / legs[_ENTRY, n, a] - 1.0 if position != 0.0 else 0.0
            account[n, instruments + a] = gain if position >= 0.0 else -gain
            account[n, 2 * instruments + a] = held / (held + HOLDING_SCALE)
        account[n, 3 * instruments] = sums[_DRAWDOWN, n]
        if halt[n] == 0:
            if equity <= 0.0 or equity < limits[_MAINTENANCE] * gross:
                halt[n] = 2
            elif sums[_DRAWDOWN, n] >= limits[_MAX_DRAWDOWN]:
                halt[n] = 1


@_kernel
def _fill(legs: Floats, rules: Floats, limits: Floats, bars: Floats, present: Bools, rows: Ints, which: Ints) -> None:
    """The venue's side: what the pending orders of the books `which` get at the open of their bars `rows`."""
    for n in which:
        row = rows[n]
        for a in range(legs.shape[2]):
            quantity = legs[_PENDING, n, a]
            legs[_PENDING, n, a] = 0.0
            legs[_FILL_QUANTITY, n, a] = 0.0
            if quantity == 0.0 or not present[row, a]:
                continue
            volume, lot = bars[row, a, _VOLUME], rules[_LOT, a]
            if limits[_MAX_PARTICIPATION] > 0.0 and abs(quantity) > limits[_MAX_PARTICIPATION] * volume:
                most = limits[_MAX_PARTICIPATION] * volume
                if lot > 0.0:
                    most = floor(most / lot + 1e-9) * lot
                quantity = copysign(most, quantity)
                if quantity == 0.0:
                    continue
            rate = limits[_SLIPPAGE_RATE]
            if limits[_IMPACT] > 0.0 and volume > 0.0:
                rate += limits[_IMPACT] * sqrt(abs(quantity) / volume)
            touch, tick = bars[row, a, _OPEN], rules[_TICK, a]
            price = touch * (1.0 + rate) if quantity > 0.0 else touch * (1.0 - rate)
            if tick > 0.0:  # against the taker
                price = ceil(price / tick - 1e-9) * tick if quantity > 0.0 else floor(price / tick + 1e-9) * tick
            legs[_FILL_QUANTITY, n, a] = quantity
            legs[_FILL_PRICE, n, a] = price
            legs[_FILL_FEE, n, a] = abs(quantity) * price * rules[_FEE_RATE, a]
            legs[_FILL_SLIPPAGE, n, a] = abs(price - touch) * abs(quantity)


@_kernel
def _account(sums: Floats, legs: Floats, rules: Floats, bars: Floats, present: Bools, rows: Ints, which: Ints) -> None:
    """The owner's side: book the fills of the books `which`, and mark them at the closes of their bars `rows`."""
    for n in which:
        row = rows[n]
        sums[_EQUITY_PREV, n] = sums[_EQUITY, n]
        traded = fees = slipped = funding = 0.0
        for a in range(legs.shape[2]):
            position = legs[_POSITION, n, a]
            legs[_POSITION_PREV, n, a] = position
            legs[_MARK_PREV, n, a] = legs[_MARK, n, a]
            quantity = legs[_FILL_QUANTITY, n, a]
            if quantity != 0.0:
                price, fee = legs[_FILL_PRICE, n, a], legs[_FILL_FEE, n, a]
                sums[_CASH, n] -= quantity * price + fee
                after = position + quantity
                if abs(after) < 1e-12 * abs(position) or abs(after) < 0.5 * rules[_LOT, a]:
                    after = 0.0  # the dust of adding floats
                if after == 0.0:
                    legs[_ENTRY, n, a] = 0.0
                elif position * after <= 0.0:
                    legs[_ENTRY, n, a] = price
                elif abs(after) > abs(position):
                    legs[_ENTRY, n, a] = (legs[_ENTRY, n, a] * abs(position) + price * abs(quantity)) / abs(after)
                if position * after <= 0.0:
                    legs[_HOLDING, n, a] = 0.0
                legs[_POSITION, n, a] = position = after
                traded += abs(quantity) * price
                fees += fee
                slipped += legs[_FILL_SLIPPAGE, n, a]
            legs[_HOLDING, n, a] = legs[_HOLDING, n, a] + 1.0 if position != 0.0 else 0.0
            if present[row, a]:
                close = bars[row, a, _CLOSE]
                legs[_MARK, n, a] = close
                legs[_AGE, n, a] = 0.0
                paid = position * close * bars[row, a, _FUNDING_RATE]
                sums[_CASH, n] -= paid
                funding += paid
            else:
                legs[_AGE, n, a] += 1.0
        sums[_TRADED, n] = traded
        sums[_TURNOVER, n] = traded / sums[_EQUITY_PREV, n] if sums[_EQUITY_PREV, n] > 0.0 else 0.0
        sums[_FEES, n] = fees
        sums[_SLIPPAGE, n] = slipped
        sums[_FUNDING, n] = funding


@_kernel
def _reset(sums: Floats, legs: Floats, halt: Codes, limits: Floats, which: Ints) -> None:
    """Give the books `which` their capital back."""
    for n in which:
        sums[_CASH, n] = sums[_EQUITY, n] = sums[_PEAK, n] = limits[_CAPITAL]
        halt[n] = 0
        for a in range(legs.shape[2]):
            legs[_POSITION, n, a] = legs[_ENTRY, n, a] = legs[_PENDING, n, a] = legs[_HOLDING, n, a] = legs[
                _AGE, n, a
            ] = 0.0
            legs[_MARK, n, a] = np.nan


_DO_RESET, _DO_DECIDE, _DO_MOVE, _DO_FILL, _DO_ACCOUNT, _DO_MARK = 1, 2, 4, 8, 16, 32
_DO_SETTLE = _DO_FILL | _DO_ACCOUNT | _DO_MARK
_DO_STEP = _DO_DECIDE | _DO_MOVE | _DO_SETTLE


@_kernel
def _run(
    phases: int,
    sums: Floats,
    legs: Floats,
    halt: Codes,
    verdict: Codes,
    account: Floats,
    rules: Floats,
    limits: Floats,
    bars: Floats,
    present: Bools,
    rows: Ints,
    which: Ints,
    weights: Floats,
) -> None:
    """Run `phases` in their order."""
    if phases & _DO_RESET:
        _reset(sums, legs, halt, limits, which)
    if phases & _DO_DECIDE:
        _decide(sums, legs, halt, verdict, rules, limits, weights)
    if phases & _DO_MOVE:
        for n in range(rows.shape[0]):  # `rows += 1` would cost more than all else that is done for one book
            rows[n] += 1
    if phases & _DO_FILL:
        _fill(legs, rules, limits, bars, present, rows, which)
    if phases & _DO_ACCOUNT:
        _account(sums, legs, rules, bars, present, rows, which)
    if phases & _DO_MARK:
        _mark(sums, legs, halt, account, limits, which)


@_kernel
def _observe(features: Float32s, window: int, rows: Ints, account: Floats, out: Float32s) -> None:
    width = window * features.shape[1]
    flat = features.reshape(-1)
    for n in range(rows.shape[0]):
        start = (rows[n] - window + 1) * features.shape[1]
        # Slices, so that the inner index is known to be non-negative: only then does the copy vectorise.
        seen = flat[start : start + width]
        one = out[n]
        for i in range(width):
            one[i] = seen[i]
        for i in range(account.shape[1]):
            one[width + i] = account[n, i]


@_kernel
def _advance(
    sums: Floats,
    legs: Floats,
    halt: Codes,
    verdict: Codes,
    account: Floats,
    rules: Floats,
    limits: Floats,
    bars: Floats,
    present: Bools,
    close_us: Ints,
    seen: Float32s,
    window: int,
    rows: Ints,
    ends: Ints,
    ts_prev: Ints,
    ts: Ints,
    terminated: Bools,
    truncated: Bools,
    every: Ints,
    weights: Floats,
    out: Float32s,
) -> int:
    """A whole step of all books in one call, which leaves the caches warm. Returns how many episodes ended."""
    _run(_DO_STEP, sums, legs, halt, verdict, account, rules, limits, bars, present, rows, every, weights)
    ended = 0
    for n in range(rows.shape[0]):
        ts_prev[n] = ts[n]
        ts[n] = close_us[rows[n]]
        terminated[n] = halt[n] != 0
        truncated[n] = rows[n] == ends[n] and halt[n] == 0
        ended += rows[n] == ends[n] or halt[n] != 0
    _observe(seen, window, rows, account, out)
    return ended


@intrinsic
def _pointer_at(_: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


_at = cast(Callable[[int], Any], _pointer_at)


def _advance_from(table: Any) -> int:
    """`_advance` for a table of six sizes and twenty addresses, in the order of its arguments."""
    t = carray(table, 26)
    n, a, length, width, window, size = t[0], t[1], t[2], t[3], t[4], t[5]
    return _advance(
        carray(_at(t[6]), (11, n), np.float64),
        carray(_at(t[7]), (12, n, a), np.float64),
        carray(_at(t[8]), (n,), np.int8),
        carray(_at(t[9]), (n, a), np.int8),
        carray(_at(t[10]), (n, 3 * a + 1), np.float64),
        carray(_at(t[11]), (4, a), np.float64),
        carray(_at(t[12]), (11,), np.float64),
        carray(_at(t[13]), (length, a, 4), np.float64),
        carray(_at(t[14]), (length, a), np.bool_),
        carray(_at(t[15]), (length,), np.int64),
        carray(_at(t[16]), (length, width), np.float32),
        window,
        carray(_at(t[17]), (n,), np.int64),
        carray(_at(t[18]), (n,), np.int64),
        carray(_at(t[19]), (n,), np.int64),
        carray(_at(t[20]), (n,), np.int64),
        carray(_at(t[21]), (n,), np.bool_),
        carray(_at(t[22]), (n,), np.bool_),
        carray(_at(t[23]), (n,), np.int64),
        carray(_at(t[24]), (n, a), np.float64),
        carray(_at(t[25]), (n, size), np.float32),
    )


@functools.cache
def _compiled_advance() -> Callable[[int], int]:
    """A C function of the address of such a table, compiled when training first asks for it.

    Unpacking twenty arrays takes NumPy and Numba longer than stepping one book; a pointer costs nothing.
    """
    table: Any = types.CPointer(types.intp)  # type: ignore[no-untyped-call]
    compiled = cfunc(types.intp(table), cache=True)(_advance_from)
    return ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p)(cast(int, compiled.address))


def market_of(bars: BarArrays) -> Market:
    """Bars as the kernels read them."""
    return Market(bars.open, bars.close, bars.volume, bars.funding_rate, bars.present)


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
        count = len(instruments)
        self._shape = (books, count)
        self._every = np.arange(books)
        self.terms = Terms(
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
            max_order_notional=limits.max_order_notional * capital,
            max_drawdown=limits.max_drawdown,
            max_age=float(limits.max_price_age_bars),
            maintenance=limits.maintenance_margin,
        )
        self.sums = np.zeros((11, books))
        """The fields of `books` that are one amount for each book, in their order."""
        legs = np.zeros((12, books, count))
        halt, verdict = np.zeros(books, dtype=np.int8), np.zeros((books, count), dtype=np.int8)
        account = np.zeros((books, account_size(count)))
        self.books = Books._make((*self.sums, *legs, halt, verdict, account))
        self.books.cash[:] = self.books.equity[:] = self.books.peak[:] = capital
        self.books.mark[:] = np.nan
        self._memory = (self.sums, legs, halt, verdict, account, np.array(self.terms[:4]), np.array(self.terms[4:]))
        self._no_weights = np.empty((0, count))
        self._no_rows = np.empty(0, dtype=np.int64)
        nothing = self._no_weights
        self._no_market = Market(nothing, nothing, nothing, nothing, nothing.astype(np.bool_))

    def reset(self, market: Market, rows: Ints, which: Ints | None = None) -> None:
        """Start the books (all, or `which`) anew, marked at the close of their rows."""
        self._run(_DO_RESET | _DO_SETTLE, market, rows, which)

    def decide(self, weights: Floats) -> None:
        """Size every book towards `weights` (N, A); NaN leaves a position as it is. Fills `pending` and `verdict`.

        Raises ValueError for another shape.
        """
        self._run(_DO_DECIDE, weights=weights)

    def settle(self, market: Market, rows: Ints) -> None:
        """Fill what is pending at the open of each book's row, and mark the books at its close."""
        self._run(_DO_SETTLE, market, rows)

    def fill(self, market: Market, rows: Ints) -> None:
        """The first half of `settle`, the venue's: `fill_*` say what the pending orders got."""
        self._run(_DO_FILL, market, rows)

    def account(self, market: Market, rows: Ints) -> None:
        """The second half of `settle`, the owner's: book what `fill_*` say, and mark."""
        self._run(_DO_ACCOUNT | _DO_MARK, market, rows)

    def step(self, market: Market, rows: Ints, weights: Floats) -> None:
        """`decide`, then `settle` on the next row; `rows` moves on by one, in place."""
        self._run(_DO_STEP, market, rows, weights=weights)

    def bind(self, course: Course, walk: Walk, weights: Floats, out: Float32s) -> Callable[[], int]:
        """A whole step in one cheap call: `step` towards `weights` (N, A) on a course, and observe into `out` (N, n).

        The call returns how many episodes ended; `walk` says which. All arrays are read and written in place.
        Raises ValueError for arrays that do not fit.
        """
        books, count = self._shape
        market, length, width = course.market, *course.seen.shape
        size = course.window * width + account_size(count)
        expected: list[tuple[NDArray[Any], tuple[int, ...], type[np.generic]]] = [
            (market.bars, (length, count, 4), np.float64),
            (market.present, (length, count), np.bool_),
            (course.close_us, (length,), np.int64),
            (course.seen, (length, width), np.float32),
            *((array, (books,), np.int64) for array in walk[:4]),
            *((array, (books,), np.bool_) for array in walk[4:]),
            (self._every, (books,), np.int64),
            (weights, (books, count), np.float64),
            (out, (books, size), np.float32),
        ]
        for array, shape, dtype in expected:
            if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
                raise ValueError(f"an array of shape {shape} and type {dtype.__name__} is {array.shape} {array.dtype}")
        arrays: list[NDArray[Any]] = [*self._memory, *(array for array, _, _ in expected)]
        table = np.array([books, count, length, width, course.window, size, *(array.ctypes.data for array in arrays)])
        function, address = _compiled_advance(), table.ctypes.data

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
        _run(
            phases,
            *self._memory,
            market.bars,
            market.present,
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
        """What the last step did, as a reward sees it. Its arrays are the books' own: valid until the next step."""
        b = self.books
        return RewardContext(
            equity_prev=b.equity_prev,
            equity=b.equity,
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
            getattr(self.books, name)[book] = snapshot[name]
        self._run(_DO_MARK, which=self._every[book : book + 1])


def observe(features: Float32s, window: int, rows: Ints, account: Floats, out: Float32s) -> Float32s:
    """Observations of N books at their rows into `out` (N, n), from features (T, A * F) and accounts (N, 3A + 1)."""
    _observe(features, window, rows, account, out)
    return out


_REMEMBERED = ("cash", "peak", "halt", "position", "entry", "mark", "age", "holding", "pending", "verdict")
