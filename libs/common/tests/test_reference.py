"""The simulator against an account book in plain Python, which was written from the documentation of the rules.

The account book knows no arrays and shares no code with the kernels. Where both differ, one of them is wrong by the
pages that an author reads: `Costs`, `RiskLimits`, `Bar`, the codes of the risk gate, and the decision records on fills,
money, limits, the band and ruin.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

import numpy as np

from tradeloop.common.market import EPOCH, BarArrays, Instrument, Membership, Timeframe, Universe
from tradeloop.common.portfolio import Costs, RiskLimits
from tradeloop.common.risk import DENIED, Halt, Verdict
from tradeloop.common.simulation import Market, Simulator, market_of
from tradeloop.common.strategy.rewards import LEAST_EQUITY

T = TypeVar("T")
EXACT = 1e-12
WORLDS, BARS, BOOKS = 300, 80, 2


# --- the account book --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quote:
    """One bar: what an account book needs of it. The volume is None where the source gives none."""

    open: float
    close: float
    volume: float | None
    funding_rate: float


@dataclass
class State:
    """The state of an instrument at one time."""

    rests: bool = False
    ended: bool = False
    proceeds: float = 0.0


@dataclass(frozen=True)
class Stand:
    """The events of an instrument that are in force in one bar."""

    rests: bool = False
    """Trading is halted at the close."""
    shut: bool = False
    """Trading is halted at the open."""
    ended: bool = False
    """It is delisted at the close."""
    settled: bool = False
    """It is delisted at the open."""
    proceeds: float = 0.0


@dataclass
class Holding:
    """What a book has of one instrument, and what it does about it."""

    venue: Instrument
    units: float = 0.0
    entry: float = 0.0
    price: float | None = None
    """The last close; None before the first bar."""
    missed: int = 0
    bars: int = 0
    """Bars since the position was opened or flipped."""
    belongs: bool = True
    """Whether it is a member of the universe."""
    stand: Stand = Stand()
    order: float = 0.0
    verdict: Verdict = Verdict.UNCHANGED
    measured: float = 0.0
    limit: float = 0.0

    @property
    def value(self) -> float:
        return 0.0 if self.price is None else self.units * self.price

    @property
    def opens(self) -> bool:
        """Whether the order makes the position larger, or turns it to the other side."""
        return self.order * self.units >= 0.0 or abs(self.order) > abs(self.units)

    def deny(self, verdict: Verdict, measured: float, limit: float) -> None:
        """Drop the order; of a flip, leave the part that closes. A stale price leaves nothing."""
        flip = self.order * self.units < 0.0 and verdict is not Verdict.STALE_PRICE
        self.order = -self.units if flip else 0.0
        self.verdict, self.measured, self.limit = verdict, measured, limit


def steps(amount: float, step: float) -> float:
    """The amount in whole steps, rounded down, with a slack of 1e-9 of a step."""
    return amount if step == 0.0 else math.floor(amount / step + 1e-9) * step


def whole(amount: float, step: float) -> float:
    """A sum of whole steps, without what floats add to it."""
    return amount if step == 0.0 else round(amount / step) * step


@dataclass
class AccountBook:
    """One portfolio: cash and holdings, decided at closes and filled at opens."""

    holdings: list[Holding]
    capital: float
    costs: Costs
    limits: RiskLimits
    band: float
    cash: float = field(init=False)
    equity: float = field(init=False)
    peak: float = field(init=False)
    halt: Halt = Halt.NONE
    fees: float = 0.0
    slippage: float = 0.0
    funding: float = 0.0
    traded: float = 0.0
    turnover: float = 0.0

    def __post_init__(self) -> None:
        self.cash = self.equity = self.peak = self.capital

    @property
    def gross(self) -> float:
        return sum(abs(one.value) for one in self.holdings)

    def decide(self, weights: list[float]) -> None:
        """Turn target weights into orders; NaN holds."""
        for one, weight in zip(self.holdings, weights, strict=True):
            one.order, one.verdict, one.measured, one.limit = 0.0, Verdict.UNCHANGED, 0.0, 0.0
            if self.halt is not Halt.NONE:
                self._decide_halted(one, weight)
            elif one.stand.ended:
                if not math.isnan(weight) and weight != 0.0 and abs(weight) >= self.band:
                    one.deny(Verdict.DELISTED, abs(weight), 0.0)
            elif not one.belongs:
                self._decide_outside(one, weight)
            elif not math.isnan(weight) and one.price is not None:
                self._decide_one(one, weight, one.price)
            if one.stand.ended and one.order != 0.0:
                one.order, one.verdict = 0.0, Verdict.UNCHANGED
            elif one.stand.rests and one.order != 0.0:
                worth = max(self.equity, LEAST_EQUITY * self.capital)
                one.measured, one.limit = abs(one.order) * (one.price or 0.0) / worth, 0.0
                one.order, one.verdict = 0.0, Verdict.TRADING_HALTED
        self._leverage()

    def _decide_halted(self, one: Holding, weight: float) -> None:
        if one.units != 0.0:
            one.order, one.verdict = -one.units, Verdict.FLATTENED
        elif not math.isnan(weight) and weight != 0.0:
            one.deny(Verdict.HALTED, abs(weight), 0.0)

    def _decide_outside(self, one: Holding, weight: float) -> None:
        if one.units != 0.0:
            one.order, one.verdict = -one.units, Verdict.LEFT_UNIVERSE
        if not math.isnan(weight) and weight != 0.0 and abs(weight) >= self.band:
            one.deny(Verdict.NOT_A_MEMBER, abs(weight), 0.0)

    def _decide_one(self, one: Holding, weight: float, price: float) -> None:
        if weight != 0.0 and abs(weight - one.value / self.equity) < self.band:
            return
        wanted = weight * self.equity / price
        order = whole(math.copysign(steps(abs(wanted), one.venue.lot_size), wanted) - one.units, one.venue.lot_size)
        if order == 0.0 or abs(order) * price < one.venue.min_notional:
            return
        one.order, one.verdict = order, Verdict.ORDERED
        if one.missed > self.limits.max_price_age_bars:
            one.deny(Verdict.STALE_PRICE, one.missed, self.limits.max_price_age_bars)
            return
        if not one.opens:
            return
        size = abs(order) * price / self.equity
        position = abs(one.units + order) * price / self.equity
        if size > self.limits.largest_order:
            one.deny(Verdict.MAX_ORDER_NOTIONAL, size, self.limits.largest_order)
        elif position > self.limits.max_position:
            one.deny(Verdict.MAX_POSITION, position, self.limits.max_position)

    def _leverage(self) -> None:
        after = sum(abs(one.units + one.order) * one.price for one in self.holdings if one.price is not None)
        if self.halt is Halt.NONE and after > self.limits.max_leverage * self.equity:
            for one in self.holdings:
                if one.verdict is Verdict.ORDERED and one.opens:
                    one.deny(Verdict.MAX_LEVERAGE, after / self.equity, self.limits.max_leverage)

    def trade(self, bars: list[Quote | None], members: list[bool], stands: list[Stand]) -> None:
        """Fill the orders at the open of the next bar, and value the book at its close, where these are members."""
        before = self.equity
        for one, belongs, stand in zip(self.holdings, members, stands, strict=True):
            one.belongs, one.stand = belongs, stand
        self.fees = self.slippage = self.funding = self.traded = 0.0
        bars = [None if one.stand.settled else bar for one, bar in zip(self.holdings, bars, strict=True)]
        for one, bar in zip(self.holdings, bars, strict=True):
            if one.stand.settled:
                self.cash += one.units * one.stand.proceeds
                self.traded += abs(one.units) * one.stand.proceeds
                one.units = one.entry = 0.0
            elif bar is not None and one.order != 0.0 and not one.stand.shut:
                self._fill(one, bar)
            one.order = 0.0
        for one, bar in zip(self.holdings, bars, strict=True):
            if bar is None:
                one.missed += not one.stand.rests
            else:
                one.price, one.missed = bar.close, 0
                paid = one.units * bar.close * bar.funding_rate
                self.cash -= paid
                self.funding += paid
            one.bars = one.bars + 1 if one.units != 0.0 else 0
        self.equity = self.cash + sum(one.value for one in self.holdings)
        self.peak = max(self.peak, self.equity)
        self.turnover = self.traded / before if before > 0.0 else 0.0
        if self.halt is not Halt.NONE:
            return
        if self.equity <= 0.0 or self.equity < self.limits.maintenance_margin * self.gross:
            self.halt = Halt.MARGIN_CALL
        elif self.drawdown >= self.limits.max_drawdown:
            self.halt = Halt.DRAWDOWN_HALT

    def _fill(self, one: Holding, bar: Quote) -> None:
        amount, side = abs(one.order), math.copysign(1.0, one.order)
        if self.costs.max_participation is not None and bar.volume is not None:
            share = self.costs.max_participation * bar.volume
            if share < amount:
                amount = steps(share, one.venue.lot_size)
        if amount == 0.0:
            return
        worse = self.costs.slippage_bps / 1e4
        if bar.volume:
            worse += self.costs.impact_bps / 1e4 * math.sqrt(amount / bar.volume)
        price = max(bar.open * (1.0 + side * worse), 0.0)
        if tick := one.venue.tick_size:
            price = math.ceil(price / tick - 1e-9) * tick if side > 0.0 else math.floor(price / tick + 1e-9) * tick
        fee = amount * price * one.venue.taker_bps / 1e4 * self.costs.fee_multiplier
        self.cash -= side * amount * price + fee
        self.fees += fee
        self.slippage += amount * abs(price - bar.open)
        self.traded += amount * price
        before, after = one.units, whole(one.units + side * amount, one.venue.lot_size)
        if before * after <= 0.0:
            one.entry, one.bars = (price if after else 0.0), 0
        elif abs(after) > abs(before):
            one.entry = (abs(before) * one.entry + amount * price) / abs(after)
        one.units = after

    @property
    def drawdown(self) -> float:
        return 1.0 - self.equity / self.peak

    @property
    def unrealised(self) -> float:
        return sum(one.value - one.units * one.entry for one in self.holdings)


# --- random worlds -----------------------------------------------------------------------------------------------


class Dice:
    """Random numbers and picks, the same for a seed."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def choice(self, among: Sequence[T]) -> T:
        return among[int(self._generator.integers(len(among)))]

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(self._generator.random())

    def normal(self, mean: float, deviation: float) -> float:
        return mean + deviation * float(self._generator.standard_normal())


@dataclass(frozen=True)
class World:
    """Everything that one run of a few books is made of."""

    instruments: list[Instrument]
    costs: Costs
    limits: RiskLimits
    band: float
    capital: float
    bars: list[list[Quote | None]]
    """By frame and instrument; None is a gap."""
    weights: list[list[list[float]]]
    """By frame, book and instrument."""
    members: list[list[bool]]
    """By frame and instrument."""
    events: list[list[tuple[str, float, float]]]
    """Of each instrument in the order of time: the kind, the time in frames, and proceeds."""

    @property
    def stands(self) -> list[list[Stand]]:
        """By frame and instrument."""
        return [[stand(events, t) for events in self.events] for t in range(BARS)]


def decimal(value: float) -> float:
    """The power of ten below a number."""
    return float(10.0 ** math.floor(math.log10(value)))


def world(seed: int) -> World:
    """A random world, with everything switched on that its dice give it."""
    dice = Dice(seed)
    count, leverage = dice.choice(range(1, 9)), dice.choice([1.0, 1.0, 2.0, 3.0])
    capital = 10.0 ** dice.uniform(2, 7)
    levels = [10.0 ** dice.uniform(-9, 6) for _ in range(count)]
    instruments = [
        Instrument(
            id=f"test:{a}",
            tick_size=dice.choice([0.0, decimal(level * 1e-4), decimal(level * 0.05)]),
            lot_size=dice.choice([0.0, decimal(capital / level * 1e-5), decimal(capital / level * 0.1)]),
            min_notional=dice.choice([0.0, capital * dice.uniform(0.001, 0.1)]),
            taker_bps=dice.choice([0.0, 2.0, 30.0]),
        )
        for a, level in enumerate(levels)
    ]
    costs = Costs(
        slippage_bps=dice.choice([0.0, 1.0, 20.0]),
        impact_bps=dice.choice([0.0, 10.0, 100.0]),
        max_participation=dice.choice([None, 0.05, 0.5, 1.0]),
        fee_multiplier=dice.choice([0.0, 1.0, 5.0]),
    )
    limits = RiskLimits(
        max_position=leverage * dice.choice([0.4, 0.9, 1.05, 10.0]) * dice.uniform(0.99, 1.01),
        max_leverage=leverage * dice.choice([0.6, 1.05, 10.0]) * dice.uniform(0.99, 1.01),
        max_order_notional=dice.choice([None, leverage * dice.uniform(0.2, 2.5)]),
        max_drawdown=dice.choice([0.1, 0.5, 0.9, 1.0]),
        max_price_age_bars=dice.choice([0, 1, 5]),
        maintenance_margin=dice.choice([0.0, 0.05, 0.3]),
    )
    return World(
        instruments,
        costs,
        limits,
        dice.choice([0.0, 0.02, 0.3]) * leverage / count,
        capital,
        quotes(dice, levels, capital),
        [[weights(dice, count, leverage) for _ in range(BOOKS)] for _ in range(BARS)],
        members(dice, count),
        [happenings(dice, level) for level in levels],
    )


def happenings(dice: Dice, level: float) -> list[tuple[str, float, float]]:
    """Halts that may last, and maybe a delisting, at any time of a bar."""
    found: list[tuple[str, float, float]] = []
    at, rests = 0.0, False
    often = dice.choice([0.0, 0.0, 0.02, 0.05])
    while often and (at := at + dice.choice([0.25, 0.5, 1.0, 3.0]) + dice.uniform(0.0, 1.0 / often)) < BARS:
        at = math.floor(at * 4.0) / 4.0
        found.append(("resume" if rests else "halt", at, 0.0))
        rests = not rests
    if dice.uniform(0.0, 1.0) < 0.2:
        end = math.floor(dice.uniform(0.0, BARS) * 4.0) / 4.0
        found = [each for each in found if each[1] < end]
        found.append(("delisting", end, dice.choice([0.0, level, level * dice.uniform(0.0, 2.0)])))
    return found


def stand(events: list[tuple[str, float, float]], t: int) -> Stand:
    """The state of an instrument in the bar that opens at `t` and closes at `t + 0.5`: the market rests in between."""
    open_, close = State(), State()
    for kind, at, proceeds in events:
        for state, time in ((open_, t), (close, t + 0.5)):
            if at <= time:
                state.rests = kind == "halt"
                state.ended = kind == "delisting"
                state.proceeds = proceeds
    return Stand(close.rests, open_.rests, close.ended, open_.ended, close.proceeds)


def members(dice: Dice, count: int) -> list[list[bool]]:
    """The members of the universe: always all, in half of the worlds, or those who come and go."""
    now, changes = [True] * count, dice.choice([0.0, 0.03])
    found = []
    for _ in range(BARS):
        now = [not one if dice.uniform(0.0, 1.0) < changes else one for one in now]
        found.append(now)
    return found


def quotes(dice: Dice, levels: list[float], capital: float) -> list[list[Quote | None]]:
    """Walks of the prices with jumps, gaps, late listings, and bars in which nothing trades or nobody counts."""
    columns: list[list[Quote | None]] = []
    for level in levels:
        close, swing = level, dice.choice([0.002, 0.01, 0.05])
        missing, listed = dice.choice([0.0, 0.1, 0.3]), dice.choice([0, 0, 0, 15])
        depth = 10.0 ** (dice.uniform(-1, 4) if dice.uniform(0.0, 1.0) < 0.95 else -6) * capital / level
        counted = dice.choice([0.0, 1.0, 0.9])
        column: list[Quote | None] = []
        for t in range(BARS):
            opened = close * math.exp(dice.normal(0.0, swing / 4))
            jump = dice.choice([0.5, 1.0, 1.7]) if dice.uniform(0.0, 1.0) < 0.02 else 1.0
            close = opened * jump * math.exp(dice.normal(0.0, swing))
            volume = 0.0 if dice.uniform(0.0, 1.0) < 0.05 else depth * math.exp(dice.normal(0.0, 1.5))
            rate = dice.normal(0.0, 1e-3) if t % 8 == 0 else 0.0
            bar = Quote(opened, close, volume if dice.uniform(0.0, 1.0) < counted else None, rate)
            column.append(None if t < listed or dice.uniform(0.0, 1.0) < missing else bar)
        columns.append(column)
    return [list(row) for row in zip(*columns, strict=True)]


def weights(dice: Dice, count: int, leverage: float) -> list[float]:
    """One decision: whole flips, small changes, nothing at all, and more than the limits allow."""
    if dice.uniform(0.0, 1.0) < 0.1:
        return [math.nan] * count
    sides = [dice.choice([-1.0, 0.0, 1.0]) * leverage / count for _ in range(count)]
    kind = dice.uniform(0.0, 1.0)
    if kind < 0.4:
        return sides
    if kind < 0.8:
        return [dice.uniform(-1.0, 1.0) * leverage / count for _ in range(count)]
    return [dice.choice([side, dice.normal(0.0, 2.0 * leverage), math.nan]) for side in sides]


def universe(w: World) -> Universe:
    """The universe of a world, with its memberships and events in time."""
    stays: dict[str, list[Membership]] = {}
    for a, one in enumerate(w.instruments):
        inside = [False, *(row[a] for row in w.members), False]
        edges = [t for t in range(BARS + 1) if inside[t] != inside[t + 1]]
        # A decision at a close is held to who belongs then.
        spans = zip(edges[::2], edges[1::2], strict=True)
        stays[one.id] = [Membership(start=hour(t + 0.5), end=hour(u + 0.5)) for t, u in spans]
    always = all(all(row) for row in w.members)
    events = {
        one.id: [
            {"time": hour(at), "kind": kind} | ({"proceeds": proceeds} if kind == "delisting" else {})
            for kind, at, proceeds in found
        ]
        for one, found in zip(w.instruments, w.events, strict=True)
        if found
    }
    return Universe.model_validate(
        {
            "name": "reference",
            "instruments": w.instruments,
            "timeframe": "1h",
            "members": {} if always else stays,
            "events": events,
        }
    )


def hour(t: float) -> datetime:
    """A time in frames, of which one opens every other hour."""
    return EPOCH + timedelta(hours=2 * t)


def market(w: World) -> Market:
    """The bars as the simulator reads them; where there is none, prices repeat the last close."""
    return market_of(arrays(w), universe(w))


def arrays(w: World) -> BarArrays:
    bars = w.bars
    rows, last = [], [math.nan] * len(bars[0])
    for row in bars:
        cells = []
        for a, bar in enumerate(row):
            if bar is None:
                cells.append((last[a], last[a], math.nan, 0.0, False))
                continue
            last[a] = bar.close
            cells.append((bar.open, bar.close, math.nan if bar.volume is None else bar.volume, bar.funding_rate, True))
        rows.append(cells)
    open_, close, volume, funding, present = np.moveaxis(np.array(rows, dtype=np.float64), -1, 0)
    opens = np.arange(BARS, dtype=np.int64) * 2 * Timeframe.H1.us
    return BarArrays(
        instruments=tuple(one.id for one in w.instruments),
        open_us=opens,
        close_us=opens + Timeframe.H1.us,
        open=open_,
        high=np.maximum(open_, close),
        low=np.minimum(open_, close),
        close=close,
        volume=volume,
        funding_rate=funding,
        present=present.astype(np.bool_),
    )


# --- one against the other ---------------------------------------------------------------------------------------


def near(what: tuple[object, ...], found: float, expected: float, scale: float) -> None:
    assert abs(found - expected) <= EXACT * scale, (*what, found, expected)


class Comparison:
    """The simulator's books beside account books, step by step."""

    def __init__(self, seed: int) -> None:
        self.seed, self.world = seed, world(seed)
        w = self.world
        self.market, self.stands = market(w), w.stands
        terms = {"capital": w.capital, "costs": w.costs, "limits": w.limits}
        self.simulator = Simulator(BOOKS, w.instruments, **terms, no_trade_band=w.band)  # type: ignore[arg-type]
        self.books = [
            AccountBook([Holding(one) for one in w.instruments], w.capital, w.costs, w.limits, w.band)
            for _ in range(BOOKS)
        ]
        self.seen: Counter[str] = Counter()

    def run(self) -> None:
        rows = np.zeros(BOOKS, dtype=np.int64)
        self.simulator.reset(self.market, rows)
        for book in self.books:
            book.trade(self.world.bars[0], self.world.members[0], self.stands[0])
        for t in range(BARS - 1):
            self.simulator.decide(np.array(self.world.weights[t]))
            for n, book in enumerate(self.books):
                book.decide(self.world.weights[t][n])
                self.compare_orders(f"seed {self.seed}, bar {t}, book {n}", n, book)
            wanted = [[one.order for one in book.holdings] for book in self.books]
            rows += 1
            self.simulator.fill_and_mark(self.market, rows)
            for n, book in enumerate(self.books):
                before = [one.units for one in book.holdings]
                book.trade(self.world.bars[t + 1], self.world.members[t + 1], self.stands[t + 1])
                self.compare_marks(f"seed {self.seed}, bar {t + 1}, book {n}", n, book)
                self.note(book, wanted[n], before)

    def compare_orders(self, where: str, n: int, book: AccountBook) -> None:
        b = self.simulator.books
        assert [Verdict(code) for code in b.verdict[n]] == [one.verdict for one in book.holdings], where
        orders, measured, limits = b.pending[n].tolist(), b.measured[n].tolist(), b.limit[n].tolist()
        for a, one in enumerate(book.holdings):
            near((where, a, "order"), orders[a], one.order, abs(one.order) + abs(one.units))
            if one.verdict in DENIED:
                near((where, a, "measured"), measured[a], one.measured, 10.0 * one.measured)
                near((where, a, "limit"), limits[a], one.limit, one.limit)

    def compare_marks(self, where: str, n: int, book: AccountBook) -> None:
        b = self.simulator.books
        assert Halt(b.halt[n]) is book.halt, where
        # What equity is the sum of: near ruin, each of both is far larger than what is left.
        scale = abs(book.cash) + book.gross
        for name in ("cash", "equity", "peak", "fees", "slippage", "funding", "traded", "unrealised"):
            near((where, name), getattr(b, name)[n].item(), getattr(book, name), scale)
        near((where, "drawdown"), b.drawdown[n].item(), book.drawdown, scale / book.peak)
        near((where, "turnover"), b.turnover[n].item(), book.turnover, 10.0 * book.turnover)
        assert np.isfinite(b.account[n]).all(), where
        position, entry = b.position[n].tolist(), b.entry[n].tolist()
        held = zip(b.age[n].tolist(), b.holding[n].tolist(), strict=True)
        assert list(held) == [(one.missed, one.bars) for one in book.holdings], where
        for a, one in enumerate(book.holdings):
            near((where, a, "position"), position[a], one.units, abs(one.units) + scale / (one.price or 1.0))
            near((where, a, "entry"), entry[a], one.entry, 10.0 * one.entry)

    def note(self, book: AccountBook, wanted: list[float], before: list[float]) -> None:
        """Count what happened, so that a world in which it never does is noticed."""
        self.seen[book.halt.name] += 1
        self.seen["ruined"] += book.equity <= 0.0
        for one, order, held in zip(book.holdings, wanted, before, strict=True):
            self.seen[one.verdict.name] += 1
            self.seen["flips"] += held * one.units < 0.0
            self.seen["partial"] += 0.0 < abs(one.units - held) < abs(order) * (1.0 - 1e-9)
            self.seen["settled"] += one.stand.settled and held != 0.0
            self.seen["shut"] += one.stand.shut and order != 0.0
            self.seen["denied but closed"] += one.verdict in DENIED and order != 0.0


def test_the_simulator_is_the_account_book_that_the_documentation_describes() -> None:
    seen: Counter[str] = Counter()
    for seed in range(WORLDS):
        one = Comparison(seed)
        one.run()
        seen += one.seen
    everything = {*Verdict.__members__, *Halt.__members__, "ruined", "flips", "partial", "denied but closed", "shut"}
    assert {name for name in everything if seen[name] < WORLDS} == set(), "a rule is hardly tried"
    assert seen["settled"] >= WORLDS / 4
