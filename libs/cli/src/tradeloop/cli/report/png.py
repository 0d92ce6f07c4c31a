"""The picture: equity against the baselines, over the drawdown."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from tradeloop.cli.report.charts import TimeAxis
from tradeloop.cli.report.files import Run
from tradeloop.cli.report.panels import curve_name, curves, focus
from tradeloop.common.evaluation.performance import drawdown

_COLOURS = {
    "policy": "#0072b2",
    "buy_and_hold": "#c77700",
    "equal_weight": "#008a64",
    "momentum": "#3b9fd6",
    "random": "#b0568f",
    "cash": "#7c8591",
}
_SOFT, _RULE = "#5b6470", "#e4e7ea"


def draw(path: Path, run: Run) -> None:
    """Write the picture as PNG, 1600 x 1000 pixels."""
    equity = curves(run)
    falls = {name: -drawdown(curve) for name, curve in equity.items() if name != "cash"}
    # A user's own matplotlibrc must not change the file.
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({"font.size": 11, "path.simplify": False})
        figure = Figure(figsize=(10, 6.25), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(5, 2))
        for axes, series in ((above, equity), (below, falls)):
            for name in reversed(series):
                axes.plot(
                    series[name],
                    color=_COLOURS.get(name, _SOFT),
                    linewidth=1.4 if name == "policy" else 0.9,
                    linestyle="--" if name == "cash" else "-",
                    label=curve_name(name),
                )
            _dress(axes, TimeAxis(run.bars.close_us))
        below.fill_between(range(len(run.bars)), falls["policy"], color=_COLOURS["policy"], alpha=0.16, linewidth=0)
        low, high, _ = focus(equity)
        above.set_ylim(low, high)
        above.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}" if high - low > 10 else "{x:,.4g}"))
        above.set_title(f"{', '.join(run.portfolio.universe.ids)}: equity and drawdown", loc="left", fontweight="bold")
        above.legend(reverse=True, frameon=False, ncols=len(equity))
        below.set_ylim(min(focus(falls)[0], -1e-4), 0.0)
        below.yaxis.set_major_formatter(PercentFormatter(1.0))
        figure.savefig(path, format="png", metadata={"Software": None})


def _dress(axes: Axes, axis: TimeAxis) -> None:
    ticks = axis.ticks
    axes.set_xlim(-0.5, len(axis) - 0.5)
    axes.set_xticks([x * len(axis) - 0.5 for x, _ in ticks], [label for _, label in ticks])
    axes.grid(axis="y", color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(color=_RULE, labelcolor=_SOFT)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)
    axes.yaxis.tick_right()
