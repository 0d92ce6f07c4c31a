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

from collections.abc import Mapping, Sequence
from enum import IntEnum
from math import ceil, copysign, floor, isnan, sqrt
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numba import njit
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


_OPEN, _CLOSE, _VOLUME, _FUNDING_RATE = range(4)


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


def _kernel(function: F) -> F:
    """Compile without fast math: strict IEEE order of operations is what makes the paths agree bit for bit."""
    return cast(F, njit(cache=True, nogil=True, error_model="numpy")(function))


@_kernel
def _grows(position: float, target: float) -> bool:
    """Whether going there opens exposure: a larger position, or one on the other side."""
    return abs(target) > abs(position) or target * position < 0.0


@_kernel
def _decide(b: Books, terms: Terms, weights: Floats) -> None:
    """Size every book towards `weights` (N, A); NaN leaves a position as it is."""
    instruments = weights.shape[1]
    for n in range(weights.shape[0]):
        equity = b.equity[n]
        gross = 0.0
        for a in range(instruments):
            position, price, weight = b.position[n, a], b.mark[n, a], weights[n, a]
            quantity = 0.0
            verdict = 0
            if b.halt[n] != 0:
                if position != 0.0:
                    quantity, verdict = -position, 2
                elif weight != 0.0 and not isnan(weight):
                    verdict = 7
            elif not isnan(weight) and not isnan(price):
                gap = weight - position * price / equity
                if abs(gap) >= terms.band or (weight == 0.0 and position != 0.0):
                    target = weight * equity / price
                    lot = terms.lot[a]
                    if lot > 0.0:
                        target = copysign(floor(abs(target) / lot + 1e-9) * lot, target)
                    quantity = target - position
                    if abs(quantity) < 0.5 * lot or quantity == 0.0 or abs(quantity) * price < terms.min_notional[a]:
                        quantity = 0.0
                    elif b.age[n, a] > terms.max_age:
                        quantity, verdict = 0.0, 3
                    elif abs(quantity) * price > terms.max_order_notional:
                        quantity, verdict = 0.0, 4
                    elif _grows(position, target) and abs(target) * price > terms.max_position * equity:
                        quantity, verdict = 0.0, 5
                    else:
                        verdict = 1
            b.pending[n, a] = quantity
            b.verdict[n, a] = verdict
            if not isnan(price):
                gross += abs(position + quantity) * price
        if gross > terms.max_leverage * equity and b.halt[n] == 0:
            for a in range(instruments):
                position, quantity = b.position[n, a], b.pending[n, a]
                if _grows(position, position + quantity):
                    b.pending[n, a] = 0.0
                    b.verdict[n, a] = 6


@_kernel
def _mark(b: Books, terms: Terms, which: Ints) -> None:
    """Value the books `which` at their marks, and halt those that break a limit."""
    instruments = b.position.shape[1]
    for n in which:
        equity = b.cash[n]
        gross = unrealised = 0.0
        for a in range(instruments):
            position = b.position[n, a]
            if position != 0.0:
                value = position * b.mark[n, a]
                equity += value
                gross += abs(value)
                unrealised += value - position * b.entry[n, a]
        b.equity[n] = equity
        b.unrealised[n] = unrealised
        b.peak[n] = max(b.peak[n], equity)
        b.drawdown[n] = 1.0 - equity / b.peak[n]
        for a in range(instruments):
            position, mark = b.position[n, a], b.mark[n, a]
            held = b.holding[n, a]
            b.account[n, a] = position * mark / equity if position != 0.0 and equity > 0.0 else 0.0
            gain = mark / b.entry[n, a] - 1.0 if position != 0.0 else 0.0
            b.account[n, instruments + a] = gain if position >= 0.0 else -gain
            b.account[n, 2 * instruments + a] = held / (held + HOLDING_SCALE)
        b.account[n, 3 * instruments] = b.drawdown[n]
        if b.halt[n] == 0:
            if equity <= 0.0 or equity < terms.maintenance * gross:
                b.halt[n] = 2
            elif b.drawdown[n] >= terms.max_drawdown:
                b.halt[n] = 1


@_kernel
def _fill(b: Books, terms: Terms, bars: Floats, present: Bools, rows: Ints, which: Ints) -> None:
    """The venue's side: what the pending orders of the books `which` get at the open of their bars `rows`."""
    for n in which:
        row = rows[n]
        for a in range(b.position.shape[1]):
            quantity = b.pending[n, a]
            b.pending[n, a] = 0.0
            b.fill_quantity[n, a] = 0.0
            if quantity == 0.0 or not present[row, a]:
                continue
            volume, lot = bars[row, a, _VOLUME], terms.lot[a]
            if terms.max_participation > 0.0 and abs(quantity) > terms.max_participation * volume:
                most = terms.max_participation * volume
                if lot > 0.0:
                    most = floor(most / lot + 1e-9) * lot
                quantity = copysign(most, quantity)
                if quantity == 0.0:
                    continue
            rate = terms.slippage
            if terms.impact > 0.0 and volume > 0.0:
                rate += terms.impact * sqrt(abs(quantity) / volume)
            touch, tick = bars[row, a, _OPEN], terms.tick[a]
            price = touch * (1.0 + rate) if quantity > 0.0 else touch * (1.0 - rate)
            if tick > 0.0:  # against the taker
                price = ceil(price / tick - 1e-9) * tick if quantity > 0.0 else floor(price / tick + 1e-9) * tick
            b.fill_quantity[n, a] = quantity
            b.fill_price[n, a] = price
            b.fill_fee[n, a] = abs(quantity) * price * terms.fee[a]
            b.fill_slippage[n, a] = abs(price - touch) * abs(quantity)


@_kernel
def _account(b: Books, terms: Terms, bars: Floats, present: Bools, rows: Ints, which: Ints) -> None:
    """The owner's side: book the fills of the books `which`, and mark them at the closes of their bars `rows`."""
    for n in which:
        row = rows[n]
        b.equity_prev[n] = b.equity[n]
        traded = fees = slipped = funding = 0.0
        for a in range(b.position.shape[1]):
            position = b.position[n, a]
            b.position_prev[n, a] = position
            b.mark_prev[n, a] = b.mark[n, a]
            quantity = b.fill_quantity[n, a]
            if quantity != 0.0:
                price, fee = b.fill_price[n, a], b.fill_fee[n, a]
                b.cash[n] -= quantity * price + fee
                after = position + quantity
                if abs(after) < 1e-12 * abs(position) or abs(after) < 0.5 * terms.lot[a]:
                    after = 0.0  # the dust of adding floats
                if after == 0.0:
                    b.entry[n, a] = 0.0
                elif position * after <= 0.0:
                    b.entry[n, a] = price
                elif abs(after) > abs(position):
                    b.entry[n, a] = (b.entry[n, a] * abs(position) + price * abs(quantity)) / abs(after)
                if position * after <= 0.0:
                    b.holding[n, a] = 0.0
                b.position[n, a] = position = after
                traded += abs(quantity) * price
                fees += fee
                slipped += b.fill_slippage[n, a]
            b.holding[n, a] = b.holding[n, a] + 1.0 if position != 0.0 else 0.0
            if present[row, a]:
                close = bars[row, a, _CLOSE]
                b.mark[n, a] = close
                b.age[n, a] = 0.0
                paid = position * close * bars[row, a, _FUNDING_RATE]
                b.cash[n] -= paid
                funding += paid
            else:
                b.age[n, a] += 1.0
        b.traded[n] = traded
        b.turnover[n] = traded / b.equity_prev[n] if b.equity_prev[n] > 0.0 else 0.0
        b.fees[n] = fees
        b.slippage[n] = slipped
        b.funding[n] = funding


@_kernel
def _reset(b: Books, terms: Terms, which: Ints) -> None:
    """Give the books `which` their capital back."""
    for n in which:
        b.cash[n] = b.equity[n] = b.peak[n] = terms.capital
        b.halt[n] = 0
        for a in range(b.position.shape[1]):
            b.position[n, a] = b.entry[n, a] = b.pending[n, a] = b.holding[n, a] = b.age[n, a] = 0.0
            b.mark[n, a] = np.nan


_RESET, _DECIDE, _NEXT, _FILL, _ACCOUNT, _MARK = 1, 2, 4, 8, 16, 32
_SETTLE = _FILL | _ACCOUNT | _MARK


@_kernel
def _books(book: Floats, held: Floats, halt: Codes, verdict: Codes, account: Floats) -> Books:
    return Books(
        *(book[0], book[1], book[2], book[3], book[4], book[5], book[6], book[7], book[8], book[9], book[10]),
        *(held[0], held[1], held[2], held[3], held[4], held[5], held[6], held[7], held[8], held[9], held[10], held[11]),
        halt,
        verdict,
        account,
    )


@_kernel
def _terms(rules: Floats, s: Floats) -> Terms:
    return Terms(
        *(rules[0], rules[1], rules[2], rules[3]),
        *(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10]),
    )


@_kernel
def _run(
    phases: int,
    book: Floats,
    held: Floats,
    halt: Codes,
    verdict: Codes,
    account: Floats,
    rules: Floats,
    scalars: Floats,
    bars: Floats,
    present: Bools,
    rows: Ints,
    which: Ints,
    weights: Floats,
) -> None:
    """Run `phases` in their order. Takes blocks, since a call costs by the number of its arrays."""
    b, terms = _books(book, held, halt, verdict, account), _terms(rules, scalars)
    if phases & _RESET:
        _reset(b, terms, which)
    if phases & _DECIDE:
        _decide(b, terms, weights)
    if phases & _NEXT:
        rows += 1
    if phases & _FILL:
        _fill(b, terms, bars, present, rows, which)
    if phases & _ACCOUNT:
        _account(b, terms, bars, present, rows, which)
    if phases & _MARK:
        _mark(b, terms, which)


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
    book: Floats,
    held: Floats,
    halt: Codes,
    verdict: Codes,
    account: Floats,
    rules: Floats,
    scalars: Floats,
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
    b, terms = _books(book, held, halt, verdict, account), _terms(rules, scalars)
    _decide(b, terms, weights)
    rows += 1
    _fill(b, terms, bars, present, rows, every)
    _account(b, terms, bars, present, rows, every)
    _mark(b, terms, every)
    ended = 0
    for n in range(rows.shape[0]):
        ts_prev[n] = ts[n]
        ts[n] = close_us[rows[n]]
        terminated[n] = halt[n] != 0
        truncated[n] = rows[n] == ends[n] and halt[n] == 0
        ended += rows[n] == ends[n] or halt[n] != 0
    _observe(seen, window, rows, account, out)
    return ended


def market_of(bars: BarArrays) -> Market:
    """Bars as the kernels read them."""
    return Market(bars.open, bars.close, bars.volume, bars.funding_rate, bars.present)


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
        book = np.zeros((11, books))
        held = np.zeros((12, books, count))
        halt, verdict = np.zeros(books, dtype=np.int8), np.zeros((books, count), dtype=np.int8)
        account = np.zeros((books, account_size(count)))
        self.books = Books._make((*book, *held, halt, verdict, account))
        self.books.cash[:] = self.books.equity[:] = self.books.peak[:] = capital
        self.books.mark[:] = np.nan
        self._memory = (book, held, halt, verdict, account, np.array(self.terms[:4]), np.array(self.terms[4:]))
        self._no_weights = np.empty((0, count))
        self._no_rows = np.empty(0, dtype=np.int64)
        nothing = self._no_weights
        self._no_market = Market(nothing, nothing, nothing, nothing, nothing.astype(np.bool_))

    def reset(self, market: Market, rows: Ints, which: Ints | None = None) -> None:
        """Start the books (all, or `which`) anew, marked at the close of their rows."""
        self._run(_RESET | _SETTLE, market, rows, which)

    def decide(self, weights: Floats) -> None:
        """Size every book towards `weights` (N, A); NaN leaves a position as it is. Fills `pending` and `verdict`.

        Raises ValueError for another shape.
        """
        self._run(_DECIDE, weights=weights)

    def settle(self, market: Market, rows: Ints) -> None:
        """Fill what is pending at the open of each book's row, and mark the books at its close."""
        self._run(_SETTLE, market, rows)

    def fill(self, market: Market, rows: Ints) -> None:
        """The first half of `settle`, the venue's: `fill_*` say what the pending orders got."""
        self._run(_FILL, market, rows)

    def account(self, market: Market, rows: Ints) -> None:
        """The second half of `settle`, the owner's: book what `fill_*` say, and mark."""
        self._run(_ACCOUNT | _MARK, market, rows)

    def step(self, market: Market, rows: Ints, weights: Floats) -> None:
        """`decide`, then `settle` on the next row; `rows` moves on by one, in place."""
        self._run(_DECIDE | _NEXT | _SETTLE, market, rows, weights=weights)

    def advance(self, course: Course, walk: Walk, weights: Floats, out: Float32s) -> int:
        """`step` on a course, and observe into `out` (N, n). Returns how many episodes ended; `walk` says which."""
        self._check(weights)
        market, close_us, seen, window = course
        return _advance(
            *self._memory, market.bars, market.present, close_us, seen, window, *walk, self._every, weights, out
        )

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
        self._run(_MARK, which=self._every[book : book + 1])


def observe(features: Float32s, window: int, rows: Ints, account: Floats, out: Float32s) -> Float32s:
    """Observations of N books at their rows into `out` (N, n), from features (T, A * F) and accounts (N, 3A + 1)."""
    _observe(features, window, rows, account, out)
    return out


_REMEMBERED = ("cash", "peak", "halt", "position", "entry", "mark", "age", "holding", "pending", "verdict")
