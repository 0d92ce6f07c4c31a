"""The figures of a simulated book as messages: the mark of a bar, and the verdicts of the risk gate."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from tradeloop.common.market import Delisted
from tradeloop.common.messages import OrderFilled, PortfolioMarked, PositionMark, RiskVerdict
from tradeloop.common.messages.execution import OrderReason
from tradeloop.common.messages.topics import derived_id
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.risk import DENIED, EXPLANATIONS, Halt, Verdict, wire_code
from tradeloop.common.simulation import Books


def marked(portfolio: Portfolio, books: Books, time: datetime) -> PortfolioMarked:
    """The mark of the first of the books, which is that of the portfolio."""
    count = len(portfolio.universe.ids)
    account = books.account[0].tolist()
    rows = zip(
        portfolio.universe.ids,
        books.position[0].tolist(),
        books.entry[0].tolist(),
        [0.0 if mark != mark else mark for mark in books.mark[0].tolist()],  # NaN before the first bar
        account[:count],
        account[count : 2 * count],
        books.holding[0].tolist(),
        strict=True,
    )
    return PortfolioMarked(
        universe=portfolio.universe.name,
        portfolio=portfolio.name,
        time=time,
        cash=float(books.cash[0]),
        equity=float(books.equity[0]),
        peak_equity=float(books.peak[0]),
        drawdown=float(books.drawdown[0]),
        state="halted" if books.halt[0] else "active",
        positions=tuple(
            PositionMark(
                instrument=instrument,
                quantity=quantity,
                entry_price=entry,
                mark_price=mark,
                weight=weight,
                unrealised_return=gain,
                holding_bars=int(held),
            )
            for instrument, quantity, entry, mark, weight, gain, held in rows
        ),
    )


def denials(portfolio: Portfolio, books: Books, time: datetime) -> list[RiskVerdict]:
    """Why orders were not sent as they were wanted, with what the gate measured and the limits that they broke."""
    found = []
    for a, verdict in enumerate(map(Verdict, books.verdict[0].tolist())):
        if verdict in DENIED:
            measured, limit = float(books.measured[0, a]), float(books.limit[0, a])
            instead = "; closing the position instead" if books.pending[0, a] != 0.0 else ""
            found.append(_verdict(portfolio, time, verdict, portfolio.universe.ids[a], measured, limit, instead))
    return found


def halt_verdict(portfolio: Portfolio, books: Books, time: datetime) -> RiskVerdict:
    """Why the portfolio is halted."""
    halt = Halt(int(books.halt[0]))
    limit = getattr(portfolio.limits, EXPLANATIONS[halt].limit)
    return _verdict(portfolio, time, halt, "", float(books.halt_measured[0]), limit)


def _verdict(
    portfolio: Portfolio,
    time: datetime,
    code: Verdict | Halt,
    instrument: str,
    measured: float,
    limit: float,
    instead: str = "",
) -> RiskVerdict:
    return RiskVerdict(
        universe=portfolio.universe.name,
        portfolio=portfolio.name,
        time=time,
        code=wire_code(code),
        instrument=instrument,
        measured=measured,
        limit=limit,
        text=f"{EXPLANATIONS[code].measured}: {measured:.6g}, limit {limit:.6g}{instead}",
    )


def expiry(instrument: str, halted: Collection[str], delisted: Sequence[Delisted]) -> OrderReason:
    """The event for which an order did not fill, by who is halted and delisted at an open; empty for none."""
    if any(one.instrument == instrument for one in delisted):
        return "delisted"
    return "trading_halted" if instrument in halted else ""


def delisting_fill(
    portfolio: Portfolio, delisted: Delisted, quantity: float, before: datetime, time: datetime
) -> OrderFilled:
    """A signed quantity that closes a position at a delisting's proceeds. `before` is the mark before it."""
    order_id = derived_id(
        "delisting", portfolio.account, portfolio.name, delisted.instrument, delisted.time.astimezone(UTC).isoformat()
    )
    return OrderFilled(
        universe=portfolio.universe.name,
        portfolio=portfolio.name,
        account=portfolio.account,
        fill_id=derived_id("fill", portfolio.account, order_id, before.isoformat()),
        order_id=order_id,
        decision_time=before,
        time=time,
        instrument=delisted.instrument,
        side="buy" if quantity > 0 else "sell",
        quantity=abs(quantity),
        price=delisted.proceeds,
        fee=0.0,
        slippage=0.0,
        reason="delisting",
    )
