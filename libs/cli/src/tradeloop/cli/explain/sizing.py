"""From a target weight to an order, step by step in plain arithmetic, and each check of the risk gate with its value.

The services have it compiled (`tradeloop.common.simulation.kernels`). Here it is written out once more, so that every
number on the way can be shown; what comes out is held against the orders and verdicts on record.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tradeloop.common.market import Instrument
from tradeloop.common.messages import PortfolioMarked, PositionMark
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.risk import Verdict, wire_code
from tradeloop.common.strategy.rewards import LEAST_EQUITY


@dataclass(frozen=True)
class Check:
    """One check, the quantity that it measured, and the limit that this is held against."""

    name: str
    measured: float
    limit: float
    passed: bool
    unit: str


@dataclass
class Sized:
    """The order that a target weight comes to, for one instrument."""

    instrument: str
    equity: float
    price: float
    """The last close; 0 before the first."""
    position: float
    """The signed quantity that is held."""
    weight: float
    """The value of the position as a share of equity."""
    target: float | None
    """The target weight; None to leave the position as it is."""
    lot_size: float
    min_notional: float
    band: float
    exact: float = 0.0
    """The position that the target asks for, before it is rounded to lots."""
    rounded: float = 0.0
    """The same in whole lots, towards zero."""
    quantity: float = 0.0
    """The signed quantity of the order; 0 for none."""
    why: str = ""
    """Why there is no order, or another one than the target asks for; empty where there is the one."""
    code: str = ""
    """The code of the risk gate for that; empty where it is not the gate's."""
    checks: list[Check] = field(default_factory=list)


@dataclass(frozen=True)
class Rules:
    """The things that decide about orders beside targets: what is configured, and what is in force at the close."""

    portfolio: Portfolio
    band: float
    outside: Collection[str] = ()
    resting: Collection[str] = ()
    ended: Collection[str] = ()
    ages: Mapping[str, int] = field(default_factory=dict)
    """Frames since the last bar of those instruments that have none at the close."""


def sized(mark: PortfolioMarked, targets: Mapping[str, float | None], rules: Rules) -> list[Sized]:
    """The orders that targets come to at a mark, in the order of the universe."""
    held = {one.instrument: one for one in mark.positions}
    portfolio = rules.portfolio
    orders = [_one(mark, held.get(one.id), one, targets.get(one.id), rules) for one in portfolio.universe.instruments]
    if mark.state == "halted":
        return orders
    gross = math.fsum(abs(one.position + one.quantity) * one.price for one in orders) / mark.equity
    limit = portfolio.limits.max_leverage
    for one in orders:
        within = gross <= limit
        if one.quantity:
            one.checks.append(Check("max_leverage", gross, limit, within, "all positions over equity"))
        if not within and _grows(one.position, one.position + one.quantity):
            one.quantity = _reduction(one.position, one.position + one.quantity)
            _deny(one, Verdict.MAX_LEVERAGE, "all positions together would be too large")
    return orders


def _one(
    mark: PortfolioMarked, held: PositionMark | None, instrument: Instrument, target: float | None, rules: Rules
) -> Sized:
    one = Sized(
        instrument=instrument.id,
        equity=mark.equity,
        price=held.mark_price if held else 0.0,
        position=held.quantity if held else 0.0,
        weight=held.weight if held else 0.0,
        target=target,
        lot_size=instrument.lot_size,
        min_notional=instrument.min_notional,
        band=rules.band,
    )
    if mark.state == "halted":
        one.quantity = -one.position
        if one.position:
            _deny(one, None, "the portfolio is halted: the position is closed")
        elif target:
            _deny(one, Verdict.HALTED, "the portfolio is halted: nothing is opened")
    elif one.instrument in rules.outside:
        _outside(one, one.instrument in rules.ended)
    elif target is None:
        one.why = "it is left as it is"
    elif not one.price:
        one.why = "it has had no bar yet, so that it has no price"
    else:
        _towards(one, target, rules)
    if one.quantity and one.instrument in rules.ended:
        one.quantity, one.why = 0.0, "it is delisted: the next open closes the position at the proceeds"
    elif one.quantity and one.instrument in rules.resting:
        worth = max(mark.equity, LEAST_EQUITY * rules.portfolio.capital)
        value = abs(one.quantity) * one.price / worth
        one.checks.append(Check("trading_halted", value, 0.0, False, "order over equity while trading is halted"))
        one.quantity = 0.0
        _deny(one, Verdict.TRADING_HALTED, "trading in it is halted")
    return one


def _outside(one: Sized, ended: bool) -> None:
    if one.position and not ended:
        one.quantity = -one.position
        one.why = "it does not belong to the universe any more: the position is closed"
    if one.target and abs(one.target) >= one.band:
        code = Verdict.DELISTED if ended else Verdict.NOT_A_MEMBER
        _deny(one, code, "it is delisted" if ended else "it does not belong to the universe")
    elif not one.position:
        one.why = "it is delisted" if ended else "it does not belong to the universe, and nothing is wanted of it"


def _towards(one: Sized, target: float, rules: Rules) -> None:
    limits = rules.portfolio.limits
    gap = target - one.position * one.price / one.equity
    closes = target == 0.0 and one.position != 0.0
    one.exact = one.rounded = target * one.equity / one.price
    lot = one.lot_size
    if lot > 0.0:
        one.rounded = math.copysign(math.floor(abs(one.exact) / lot + 1e-9) * lot, one.exact)
    beyond = abs(gap) >= one.band or closes
    one.checks.append(Check("no_trade_band", abs(gap), one.band, beyond, "distance of the target from the weight"))
    if not beyond:
        one.why = "the target is within the no-trade band around the present weight"
        return
    quantity = one.rounded - one.position
    value = abs(quantity) * one.price
    enough = quantity != 0.0 and abs(quantity) >= 0.5 * lot
    one.checks.append(Check("lot_size", abs(quantity), lot, enough, "quantity"))
    if not enough:
        one.why = "the difference is less than a lot" if lot else "the position is there already"
        return
    one.checks.append(Check("min_notional", value, one.min_notional, value >= one.min_notional, "quote"))
    if value < one.min_notional:
        one.why = "the order would be smaller than the venue takes"
        return
    one.quantity, grows = quantity, _grows(one.position, one.rounded)
    measured: Sequence[tuple[Verdict, float, float, bool, str, str]] = (
        (Verdict.STALE_PRICE, float(rules.ages.get(one.instrument, 0)), float(limits.max_price_age_bars), False,
         "frames since its last bar", "its price is stale"),
        (Verdict.MAX_ORDER_NOTIONAL, value / one.equity, limits.largest_order, not grows,
         "order over equity", "the order is too large"),
        (Verdict.MAX_POSITION, abs(one.rounded) * one.price / one.equity, limits.max_position, not grows,
         "position over equity", "the position would be too large"),
    )  # fmt: skip
    for code, amount, limit, exempt, unit, why in measured:
        passed = amount <= limit or exempt
        one.checks.append(Check(wire_code(code), amount, limit, passed, unit))
        if not passed:
            one.quantity = 0.0 if code is Verdict.STALE_PRICE else _reduction(one.position, one.rounded)
            _deny(one, code, why)
            return


def _deny(one: Sized, code: Verdict | None, why: str) -> None:
    one.code = wire_code(code) if code is not None else one.code
    closing = code is not None and one.quantity
    one.why = f"{why}; it closes the position instead" if closing else why


def _grows(position: float, target: float) -> bool:
    """Whether going there opens exposure: a larger position, or one on the other side."""
    return abs(target) > abs(position) or target * position < 0.0


def _reduction(position: float, target: float) -> float:
    """The order that is left of one that may not open exposure: a flip still closes what it was to turn."""
    return -position if target * position < 0.0 else 0.0
