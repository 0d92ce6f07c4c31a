"""The charts of a run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tradeloop.cli.report import text
from tradeloop.cli.report.charts import Chart, TimeAxis, limits
from tradeloop.cli.report.files import Run
from tradeloop.cli.report.trading import marked
from tradeloop.common.arrays import Floats
from tradeloop.common.evaluation.performance import drawdown
from tradeloop.common.market import to_us

_COLOURS = 6
"""The number of colours, for instruments and for reward components."""
_EACH = 120
"""Up to so many fills of an instrument are drawn one by one; more are averaged over `_CELLS` parts of the range."""
_CELLS = 80
_FAR = 3.0
"""A baseline that would stretch a chart by more than this leaves it."""
_HALTS = {"drawdown_halt": "halted: drawdown", "margin_call": "halted: margin call"}
_NAMES = {
    "policy": "Policy",
    "buy_and_hold": "Buy and hold",
    "equal_weight": "Equal weight",
    "momentum": "Momentum",
    "random": "Random",
    "cash": "Cash",
}


def curves(run: Run) -> dict[str, Floats]:
    """Equity of the policy, then of the baselines."""
    named = {"policy": marked(run).equity} | {name: result.equity for name, result in run.baselines.items()}
    return {name: named[name] for name in (*_NAMES, *named) if name in named}


def curve_class(curve: str) -> str:
    """The CSS class of a curve's colour."""
    return curve if curve in _NAMES else "other"


def curve_name(curve: str) -> str:
    return _NAMES.get(curve, curve.replace("_", " ").capitalize())


def panels(run: Run) -> list[Chart]:
    """All charts, in the order in which they are read."""
    axis = TimeAxis(run.bars.close_us)
    return [_equity(axis, run), _drawdown(axis, run), *_prices(axis, run), _exposure(axis, run), _rewards(axis, run)]


def _equity(axis: TimeAxis, run: Run) -> Chart:
    lines = curves(run)
    low, high, far = focus(lines)
    note = "".join(f"{curve_name(name)} leaves the chart. " for name in far)
    chart = Chart("equity", axis, low, high, "Equity against baselines", note, height=320)
    for name in reversed(lines):  # the policy on top
        chart.line(curve_class(name), curve_name(name), lines[name])
    chart.keys.reverse()
    _mark_halts(chart, run)
    return chart


def _drawdown(axis: TimeAxis, run: Run) -> Chart:
    falls = {name: -drawdown(equity) for name, equity in curves(run).items() if name != "cash"}
    low, _, far = focus(falls)
    note = "Fall from the highest equity so far. " + "".join(f"{curve_name(name)} leaves the chart. " for name in far)
    chart = Chart("drawdown", axis, min(low, -1e-4), 0.0, "Drawdown", note, percent=True, height=180)
    for name in reversed(falls):
        if name != "policy":
            chart.line(curve_class(name), curve_name(name), falls[name])
    chart.area("policy", curve_name("policy"), falls["policy"], 0.0)
    chart.keys.reverse()
    return chart


def focus(equity: Mapping[str, Floats]) -> tuple[float, float, list[str]]:
    """Limits that show the policy well, and the baselines that leave them: those that would dwarf all else."""
    far: list[str] = []
    shown = [curve for name, curve in equity.items() if name in ("policy", "buy_and_hold", "cash")]
    low, high = limits(shown)
    for name, curve in equity.items():
        wide_low, wide_high = limits([*shown, curve])
        if wide_high - wide_low > _FAR * (high - low):
            far.append(name)
        else:
            shown.append(curve)
    return *limits(shown), far


def _mark_halts(chart: Chart, run: Run) -> None:
    for verdict in run.verdicts:
        if verdict.code in _HALTS:
            chart.event(int(np.searchsorted(run.bars.close_us, to_us(verdict.time))), _HALTS[verdict.code])


def _prices(axis: TimeAxis, run: Run) -> list[Chart]:
    """Trades drawn on price, one chart an instrument."""
    held = marked(run).weight
    return [_price(axis, run, a, held[:, a]) for a in range(len(run.bars.instruments))]


def _price(axis: TimeAxis, run: Run, a: int, weight: Floats) -> Chart:
    instrument, close = run.bars.instruments[a], run.bars.close[:, a]
    # Columns, as there may be more fills than fit as messages.
    fills = [(to_us(f.time), f.side, f.quantity, f.price) for f in run.fills if f.instrument == instrument]
    times_us, sides, quantity, prices = (np.array([fill[i] for fill in fills]) for i in range(4))
    rows = np.searchsorted(run.bars.open_us, times_us, side="right") - 1
    cells = rows if len(fills) <= _EACH else rows * _CELLS // len(axis)
    note = f"{text.count(len(fills), 'fill')}: \N{BLACK UP-POINTING TRIANGLE} bought, "
    note += "\N{BLACK DOWN-POINTING TRIANGLE} sold. "
    if len(fills) > _EACH:
        length = run.bars.close_us[-1] - run.bars.open_us[0]
        note += f"Each triangle averages one side over {text.span(int(length) // _CELLS)}. "
    note += "The strip below is the position: green long, red short, stronger for larger."
    if not fills:
        note = "No trades."
    low, high = limits([close], room=0.1)
    chart = Chart(f"price{a}", axis, low, high, f"Trades on price: {instrument}", note, height=300, strip=14)
    chart.line("price", "Close", close)
    chart.shade(weight, ("buy", "sell"))
    for cell in np.unique(cells):
        for side, verb in (("buy", "bought"), ("sell", "sold")):
            members = np.flatnonzero((cells == cell) & (sides == side))
            if not len(members):
                continue
            quantities = quantity[members]
            price = float(np.average(prices[members], weights=quantities))
            bar = float(np.average(rows[members], weights=quantities))
            times = f"{len(members)} times, {verb}" if len(members) > 1 else verb.capitalize()
            chart.marker(side, bar, price, f"{times} {text.quantity(float(quantities.sum()))} at {text.price(price)}")
    return chart


def _exposure(axis: TimeAxis, run: Run) -> Chart:
    held = marked(run).weight
    if held.shape[1] > _COLOURS:
        series = [("s0", "Net", held.sum(axis=1)), ("s1", "Gross", np.abs(held).sum(axis=1))]
    elif held.shape[1] > 1:
        series = [(f"s{a}", instrument, held[:, a]) for a, instrument in enumerate(run.bars.instruments)]
    else:
        series = [("policy", "Weight", held[:, 0])]
    low, high = limits([np.zeros(1), *(values for _, _, values in series)], room=0.08)
    note = "Position value as a share of equity at each close, negative for short."
    if len(axis) > 1000:
        note += " Lines are averages over a thousandth of the range, within bands of what was reached."
    chart = Chart("exposure", axis, low, high, "Exposure", note, percent=True, height=180)
    for kind, name, values in series:
        chart.steps(kind, name, values)
    return chart


def _rewards(axis: TimeAxis, run: Run) -> Chart:
    """Running sums of the reward and its components."""
    rewards = np.zeros(len(axis))
    components: dict[str, Floats] = {}
    for one in run.transitions:  # once: they are decoded in each pass
        row = int(np.searchsorted(axis.close_us, to_us(one.time)))
        rewards[row] = one.reward
        for name, part in one.components.items():
            components.setdefault(name, np.zeros(len(axis)))[row] = part
    names = list(components)
    sums = np.column_stack([rewards, *components.values()]).cumsum(axis=0)
    low, high = limits([np.zeros(1), *sums.T])
    note = f"Summed up from the first bar, over {text.count(len(run.transitions), 'rewarded decision')}."
    chart = Chart("rewards", axis, low, high, "Reward components", note)
    if len(names) > 1:
        for i, name in enumerate(names):
            chart.line(f"s{i % (_COLOURS - 1) + 1}", name, sums[:, i + 1])
    chart.line("policy", "Reward", sums[:, 0])
    return chart
