"""The consequences of a decision, step by step: targets and limits, orders, fills, the book, and the reward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from tradeloop.cli.explain.grounds import Step, minute, number
from tradeloop.cli.explain.record import Record
from tradeloop.cli.explain.sizing import Rules, Sized, sized
from tradeloop.common.market import Timeframe
from tradeloop.common.messages import BarFrame, PortfolioMarked, Transition
from tradeloop.common.risk import EXPLANATIONS, wire_code
from tradeloop.common.strategy import load

_CLOSE = 1e-9
_MOST_FRAMES = 200


def risk(record: Record) -> Step:
    """Targets become quantities, and each check has its value; what it comes to is held against what is on record."""
    step, mark = Step("risk"), record.before
    step.facts["verdicts"] = [
        each.model_dump(mode="json", include={"code", "instrument", "measured", "limit", "text"})
        for each in record.verdicts
    ]
    if mark is None:
        step.facts["absent"] = record.why_none(PortfolioMarked)
        step.said.append(f"the book at the decision: {step.facts['absent']}")
        return _with_verdicts(record, step)
    book = mark.message
    if book.state == "halted":
        why = f": {record.halt.code}, {record.halt.text}" if record.halt else ""
        since = f" since the bar of {minute(record.halt.time)}" if record.halt else ""
        step.said.append(f"the portfolio is halted{since}{why}")
        step.facts["halt"] = record.halt.model_dump(mode="json") if record.halt else {}
    if record.portfolio is None:
        step.said.append(
            "limits, lots and the no-trade band are on no topic: name the folder of the portfolios' files "
            "(--portfolios), and each check is shown"
        )
        step.facts["absent"] = step.said[-1]
        return _with_verdicts(record, step)
    if record.configured_otherwise:
        step.said.append(record.configured_otherwise)
        step.facts["configured_otherwise"] = record.configured_otherwise
    step.said += _of_the_book(record, book, step)
    if record.kill is not None and not record.kill.flatten:
        step.said.append("no order is sent while a kill is in force, whatever the limits ask for")
        return _with_verdicts(record, step)
    steps = sized(book, _targets(record, book), _rules(record))
    ordered = {
        one[0].message.instrument: one[0].message
        for order_id, one in record.orders.items()
        if not record.is_of_a_kill(order_id)
    }
    rows: list[object] = []
    for one in steps:
        order = ordered.get(one.instrument)
        sent = 0.0 if order is None else order.quantity if order.side == "buy" else -order.quantity
        agrees = abs(sent - one.quantity) <= _CLOSE * max(abs(sent), abs(one.quantity))
        rows.append({**asdict(one), "ordered": sent, "agrees": agrees})
        step.said += _sized(one)
        if not agrees:
            step.said.append(
                f"    but {number(sent)} is what was ordered: the file of the portfolio, or the strategy that is "
                "installed, is not the one that traded"
            )
    step.facts["sizing"] = rows
    return _with_verdicts(record, step)


def _of_the_book(record: Record, book: PortfolioMarked, step: Step) -> list[str]:
    """The two checks that a book passes at each mark."""
    assert record.portfolio is not None
    limits = record.portfolio.limits
    gross = sum(abs(each.quantity) * each.mark_price for each in book.positions)
    margin = book.equity / gross if gross else None
    step.facts["book"] = {
        "equity": book.equity,
        "gross": gross,
        "drawdown": {"measured": book.drawdown, "limit": limits.max_drawdown},
        "maintenance_margin": {"measured": margin, "limit": limits.maintenance_margin},
    }
    told = "nothing is held" if margin is None else f"equity over positions {number(margin)}"
    return [
        f"equity {number(book.equity)}, drawdown {number(book.drawdown)} of at most {number(limits.max_drawdown)}, "
        f"{told}, at least {number(limits.maintenance_margin)}"
    ]


def _targets(record: Record, book: PortfolioMarked) -> Mapping[str, float | None]:
    """The target weights as execution took them; None for what is left as it is."""
    ids = [each.instrument for each in book.positions]
    assert record.portfolio is not None
    if record.kill is not None:
        return dict.fromkeys(ids, 0.0 if record.kill.flatten else None)
    if record.quarantine is not None or record.missed is not None:
        flat = record.portfolio.on_failure == "flatten" and record.quarantine is not None
        return dict.fromkeys(ids, 0.0 if flat else None)
    if record.signal is None or record.signal.message.hold:
        return dict.fromkeys(ids, None)
    signal = record.signal.message
    outside = set((record.frame.message.outside if record.frame else None) or ())
    return {
        instrument: None if instrument in signal.hidden and instrument not in outside else target
        for instrument, target in zip(signal.instruments, signal.targets, strict=True)
    }


def _rules(record: Record) -> Rules:
    portfolio = record.portfolio
    assert portfolio is not None
    band = load(portfolio.strategy).actions.band(len(portfolio.universe.instruments))
    frame = record.frame.message if record.frame else None
    if frame is None:
        return Rules(portfolio, band)
    delisted = [each.instrument for each in frame.delisted]
    return Rules(portfolio, band, frame.outside or (), frame.halted, delisted, _ages(record, frame))


def _ages(record: Record, frame: BarFrame) -> Mapping[str, int]:
    """Frames since the last bar, of those that have none in this one; while trading rests none is due."""
    ages = dict.fromkeys(frame.bars_and_gaps[1], 0)
    awaited, timeframe = set(ages), frame.timeframe
    since = frame.close_time - _MOST_FRAMES * timeframe.delta if awaited else frame.close_time
    frames = record.evidence.of(BarFrame, frame.universe, since, frame.close_time) if awaited else []
    first = {each.message.close_time: each.message for each in reversed(frames) if _is_first(each.message, timeframe)}
    for _, each in sorted(first.items(), reverse=True):
        awaited -= {one.instrument for one in each.bars}
        for instrument in awaited:
            ages[instrument] += instrument not in each.halted
        if not awaited:
            break
    return ages


def _is_first(frame: BarFrame, timeframe: Timeframe) -> bool:
    return frame.timeframe is timeframe and not frame.revision


def _sized(one: Sized) -> list[str]:
    if one.target is None and not one.quantity:
        return [f"  {one.instrument}: holds {number(one.position)}; {one.why}"]
    said = [f"  {one.instrument}: holds {number(one.position)} at {number(one.price)}, weight {number(one.weight)}"]
    if one.target is not None and one.exact:
        said[0] += (
            f"; target {number(one.target)} x equity {number(one.equity)} / {number(one.price)} = {number(one.exact)}"
            + (f", in lots of {number(one.lot_size)} {number(one.rounded)}" if one.lot_size else "")
        )
    elif one.target is not None:
        said[0] += f"; target {number(one.target)}"
    said += [
        f"    {each.name}: {number(each.measured)}, limit {number(each.limit)} ({each.unit}): "
        + ("passed" if each.passed else "not passed")
        for each in one.checks
    ]
    side = "buy" if one.quantity > 0 else "sell"
    order = f"{side} {number(abs(one.quantity))}" if one.quantity else "no order"
    return [*said, f"    {order}{f': {one.why}' if one.why else ''}"]


def _with_verdicts(record: Record, step: Step) -> Step:
    meanings = {wire_code(code): words for code, words in EXPLANATIONS.items()}
    for each in record.verdicts:
        means = meanings[each.code].happens if each.code in meanings else each.text
        step.said.append(f"denied on record, {each.code} {each.instrument}: {means} ({each.text})")
    return step


def orders(record: Record) -> Step:
    """The orders of the decision, and what became of each."""
    step = Step("orders")
    rows: list[object] = []
    for order_id, states in record.orders.items():
        first, last = states[0], states[-1].message
        rows.append(
            {
                **first.message.model_dump(mode="json", exclude={"universe", "portfolio", "status", "filled_quantity"}),
                "client_order_id": order_id,
                "states": [
                    {
                        "status": one.message.status,
                        "filled_quantity": one.message.filled_quantity,
                        "reason": one.message.reason,
                        "where": one.where,
                    }
                    for one in states
                ],
            }
        )
        why = {"trading_halted": ": trading was halted at the open", "delisted": ": it was delisted"}
        ended = f"{last.status.replace('_', ' ')}{why.get(last.reason, '')}"
        if last.status == "partially_filled":
            ended += f", {number(last.filled_quantity)} of it; the rest has expired"
        elif last.status == "expired" and not last.reason:
            ended += ": the next frame had no trade for it"
        elif last.status == "cancelled":
            ended += "".join(f": killed {kill.reason}" for kill in record.later_kills if order_id in kill.orders)
        elif last.status == "working":
            ended += ": the next bar has not come, or is not booked"
        if record.is_of_a_kill(order_id):
            ended += ", to close the position after a kill"
        step.said.append(f"{last.side} {number(last.quantity)} {last.instrument}: {ended}")
        step.said.append(f"  order {order_id}, which is also the venue's client order id; account {last.account}")
    step.facts["orders"] = rows
    if not rows:
        step.said.append("none")
    return step


def fills(record: Record) -> Step:
    """The fills at the next open, with their costs against it."""
    step = Step("fills")
    rows: list[object] = []
    bars = {each.instrument: each for each in record.next_frame.bars} if record.next_frame else {}
    for one in record.fills:
        fill = one.message
        reference = bars[fill.instrument].open if fill.instrument in bars else None
        value = reference * fill.quantity if reference else 0.0
        bps = fill.slippage / value * 1e4 if value else None
        rows.append(
            {
                **fill.model_dump(mode="json", exclude={"universe", "portfolio"}),
                "reference_open": reference,
                "slippage_bps": bps,
                "where": one.where,
            }
        )
        side = "bought" if fill.side == "buy" else "sold"
        words = f"{side} {number(fill.quantity)} {fill.instrument} at {fill.price!r}, {minute(fill.time)}"
        if fill.reason == "delisting":
            step.said.append(f"{words}: closed by its delisting, at the proceeds, without an order")
            continue
        against = "an open that is gone from the bus" if reference is None else f"the open {reference!r}"
        share = "" if bps is None else f" ({number(bps)} bps)"
        step.said.append(f"{words}; against {against}: slippage {number(fill.slippage)}{share}, fee {number(fill.fee)}")
    step.facts["fills"] = rows
    if not rows:
        step.said.append("none")
    return step


def book(record: Record) -> Step:
    """Positions and equity before, and at the bar that the orders filled in."""
    step, before, after = Step("book"), record.before, record.after
    for name, found in (("before", before), ("after", after)):
        step.facts[name] = (
            None
            if found is None
            else {
                **found.message.model_dump(mode="json", exclude={"universe", "portfolio"}),
                "where": found.where,
            }
        )
    if before is None:
        step.said.append(f"before: {record.why_none(PortfolioMarked)}")
    if after is None:
        step.said.append("after: no later mark is on the bus: the next bar has not come, or is not booked")
    later = {each.instrument: each for each in after.message.positions} if after else {}
    if before is not None:
        for each in before.message.positions:
            then = later.get(each.instrument)
            if each.quantity or (then is not None and then.quantity):
                to = "" if then is None else f" -> {number(then.quantity)}"
                step.said.append(f"  {each.instrument}: {number(each.quantity)}{to}")
        to = "" if after is None else f" -> {after.message.equity!r} at {minute(after.message.time)}"
        step.said.append(f"equity {before.message.equity!r}{to}")
        to = "" if after is None else f" -> {after.message.cash!r}"
        step.said.append(f"cash {before.message.cash!r}{to}")
    return step


def reward(record: Record) -> Step:
    """The worth of the decision, or why it earned none."""
    step, found = Step("reward"), record.transition
    if found is not None:
        told = found.message
        step.facts |= told.model_dump(
            mode="json", include={"time", "reward", "components", "terminated", "reward_id", "equity_prev", "equity"}
        )
        step.facts["where"] = found.where
        parts = ", ".join(f"{name} {number(value)}" for name, value in told.components.items())
        step.said.append(f"{told.reward!r} ({parts}) at {minute(told.time)}")
    elif record.unrewarded is not None:
        step.said.append(f"missing: {record.unrewarded.reason}")
    elif record.signal is not None and record.signal.message.hold:
        step.said.append("none: to hold for want of something earns nothing")
    elif record.missed is not None or record.quarantine is not None or record.kill is not None:
        step.said.append("none: no decision was taken")
    elif record.later_kills:
        step.said.append(f"none: before the next bar the portfolio was killed {record.later_kills[0].reason}")
    elif record.after is None:
        step.said.append("not known yet: it comes with the next bar")
    else:
        step.said.append(record.why_none(Transition))
    if found is None:
        step.facts["absent"] = step.said[-1]
    return step
