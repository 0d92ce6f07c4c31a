"""The codes of the risk gate: the fate of a target, and why a portfolio was halted.

Declared here and nowhere else: the kernels compare with these numbers, the ledger stores them, `execution.risk.v1`
carries their names, and `docs/topics.md` lists them. A number is never given another meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum


class Verdict(IntEnum):
    """The fate of a target at the gate."""

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
    NOT_A_MEMBER = 8
    LEFT_UNIVERSE = 9
    """The position is closed, since the instrument does not belong to the universe any more."""
    TRADING_HALTED = 10
    DELISTED = 11


class Halt(IntEnum):
    """Why a portfolio is halted."""

    NONE = 0
    DRAWDOWN_HALT = 1
    MARGIN_CALL = 2


@dataclass(frozen=True, slots=True)
class Explanation:
    """A code in words."""

    happens: str
    """When the gate gives it."""
    measured: str
    """The quantity that was measured."""
    limit: str
    """The setting of the portfolio's limits that it is held against; empty where there is none."""


EXPLANATIONS: Mapping[Verdict | Halt, Explanation] = {
    Verdict.STALE_PRICE: Explanation(
        "The instrument has missed too many frames: its price is stale.",
        "frames since its last bar",
        "max_price_age_bars",
    ),
    Verdict.MAX_ORDER_NOTIONAL: Explanation(
        "The order is too large and opens exposure. A flip closes the position instead.",
        "order value as a multiple of equity",
        "max_order_notional",
    ),
    Verdict.MAX_POSITION: Explanation(
        "The position would be too large. A flip closes the position instead.",
        "position as a multiple of equity",
        "max_position",
    ),
    Verdict.MAX_LEVERAGE: Explanation(
        "All positions together would be too large: no order opens exposure, and a flip closes the position instead.",
        "gross position as a multiple of equity",
        "max_leverage",
    ),
    Verdict.HALTED: Explanation(
        "The portfolio is halted: nothing is opened.",
        "size of the target weight while the portfolio is halted",
        "",
    ),
    Verdict.NOT_A_MEMBER: Explanation(
        "The instrument does not belong to the universe at that time: it is not bought, and what is held is sold.",
        "size of the target weight outside the universe",
        "",
    ),
    Verdict.TRADING_HALTED: Explanation(
        "Trading in the instrument is halted at that time: the order is not sent, and the position stays.",
        "order value as a multiple of equity while trading is halted",
        "",
    ),
    Verdict.DELISTED: Explanation(
        "The instrument is delisted: it is not bought, and what is held is closed at the stated proceeds.",
        "size of the target weight after the delisting",
        "",
    ),
    Halt.DRAWDOWN_HALT: Explanation(
        "Equity fell too far from its peak: the portfolio is halted and its positions are closed.",
        "drawdown; flattening",
        "max_drawdown",
    ),
    Halt.MARGIN_CALL: Explanation(
        "Equity no longer covers the positions: the portfolio is halted and its positions are closed.",
        "equity over gross position; flattening",
        "maintenance_margin",
    ),
}
"""Every code that is published, in words."""

REMEDIES: Mapping[Verdict | Halt, str] = {
    Verdict.STALE_PRICE: "See why bars are missing: `tradeloop status`, `/ready` of ingest; or allow for more of them.",
    Verdict.MAX_ORDER_NOTIONAL: "Let the action scheme take smaller steps, or raise the limit.",
    Verdict.MAX_POSITION: "Let the action scheme take smaller positions, or raise the limit.",
    Verdict.MAX_LEVERAGE: "Let the action scheme take smaller positions together, or raise the limit.",
    Verdict.HALTED: "See which halt came before: it stays, and only a portfolio of a new name begins a new book.",
    Verdict.TRADING_HALTED: "None is needed: the position is traded again when trading is.",
    Verdict.DELISTED: "Take the instrument out of the universe; its events say when it left and for what.",
    Verdict.NOT_A_MEMBER: "None is needed: the file of members says who belongs when.",
    Halt.DRAWDOWN_HALT: "See what was lost, and why (`tradeloop replay`); trade on as a portfolio of a new name.",
    Halt.MARGIN_CALL: "Take less leverage, or more margin; trade on as a portfolio of a new name.",
}
"""The thing to do about every code that is published."""

DENIED = frozenset(code for code in EXPLANATIONS if isinstance(code, Verdict))
"""Verdicts that stop an order, or let it only close a position."""


WARN_DENIED = 0.01
"""The share of decisions above which denied orders are worth a warning: the policy does not trade as it decides."""


def wire_code(code: Verdict | Halt) -> str:
    """The code as `execution.risk.v1` carries it."""
    return code.name.lower()


DENIAL_CODES = frozenset(map(wire_code, DENIED))
"""The codes of orders that were denied, as `execution.risk.v1` carries them; the others are halts."""

OUTSIDE_CODE = wire_code(Verdict.NOT_A_MEMBER)
"""The code of what a policy wanted of instruments outside of the universe. Of one that gives each instrument a share it
is the rule, so that it is counted apart."""

APART = frozenset({Verdict.NOT_A_MEMBER, Verdict.TRADING_HALTED, Verdict.DELISTED})
"""Verdicts that say nothing of the policy, but of where its instruments stand: they are counted apart."""

APART_CODES = frozenset(map(wire_code, APART))
"""The codes of these, as `execution.risk.v1` carries them."""
