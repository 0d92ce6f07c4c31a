"""Figures of a run that say how far to trust it, once for the report, `summary.json` and the console."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tradeloop.cli.report import happened
from tradeloop.cli.report.files import Run
from tradeloop.cli.report.trading import Trading, marked, trading, trips
from tradeloop.common.evaluation.backtest import BacktestResult
from tradeloop.common.evaluation.performance import Regression, bars_per_year, performance, regression
from tradeloop.common.evaluation.trades import TradeFigures, trade_figures
from tradeloop.common.market import from_us

SAMPLES = {"in_sample": "In sample", "valid": "Validation"}
"""The samples that a training may have metrics of, by the prefix of their names."""
_SAID = {"in_sample": "in sample", "valid": "validation", "out_of_sample": "out of sample"}


@dataclass(frozen=True)
class Evidence:
    """The figures that speak for a policy, or against it."""

    trades: TradeFigures
    explained: Regression | None
    """Its returns against those of buy and hold; None where it traded nothing, or there are none."""
    p_value: float | None
    """None where it traded nothing, or its decisions were not held against others."""
    as_good: int
    """Draws that grew at least as much."""
    draws: int


def evidence(run: Run) -> Evidence:
    """The figures of a run."""
    hold = run.baselines.get("buy_and_hold")
    equity = marked(run).equity
    found = run.significance if run.fills else None
    return Evidence(
        trades=trade_figures(trips(run)),
        explained=regression(equity, hold.equity, bars_per_year(run.bars)) if hold is not None and run.fills else None,
        p_value=None if found is None else found.p_value,
        as_good=0 if found is None else int((found.draws >= found.growth).sum()),
        draws=0 if found is None else len(found.draws),
    )


def samples(run: Run, traded: Trading) -> dict[str, dict[str, float]]:
    """Metrics of the training by sample, and of this run as `out_of_sample`; empty where the training's are unknown."""
    found: dict[str, dict[str, float]] = {}
    for name, value in run.training.items():
        prefix = next((prefix for prefix in SAMPLES if name.startswith(f"{prefix}_")), None)
        sample, metric = ("in_sample", name) if prefix is None else (prefix, name.removeprefix(f"{prefix}_"))
        found.setdefault(sample, {}).setdefault(metric, value)
    if not found:
        return {}
    achieved = performance(marked(run).equity, bars_per_year(run.bars))
    ours = {
        "total_return": achieved.total_return,
        # As the training has it where it is not defined.
        "sharpe": achieved.sharpe or 0.0,
        "max_drawdown": achieved.max_drawdown,
        "fills": float(len(run.fills)),
        "fees": sum(fill.fee for fill in run.fills),
        "reward": sum(one.reward for one in run.transitions),
        **{f"denied_{code}": float(count) for code, count in traded.denials.items()},
    }
    return {**{sample: found[sample] for sample in SAMPLES if sample in found}, "out_of_sample": ours}


def remarks(baselines: Mapping[str, BacktestResult]) -> list[str]:
    """Sentences on baselines that were halted, or that could not buy."""
    said = []
    for name, result in baselines.items():
        called = name.replace("_", " ").capitalize()
        if result.halted_at is not None:
            when = from_us(result.time_us[result.halted_at])
            said.append(f"{called} was halted at {when:%Y-%m-%d %H:%M} UTC.")
        if result.unsized:
            times = f"{result.unsized:,} time{'s' * (result.unsized != 1)}"
            said.append(f"{called} could not open a position {times}: less than a lot, or than the smallest order.")
    return said


def summary(run: Run) -> dict[str, Any]:
    """The part of `summary.json` that follows from a run, ready for JSON."""
    traded, found = trading(run), evidence(run)
    return {
        "sharpe_error": performance(marked(run).equity, bars_per_year(run.bars)).sharpe_error,
        "decisions": traded.decisions,
        "denials": traded.denials,
        "denied_decisions": traded.denied,
        "unsized_targets": traded.unsized,
        "p_value": found.p_value,
        "draws": found.draws,
        "to_buy_and_hold": None if found.explained is None else asdict(found.explained),
        "round_trips": asdict(found.trades),
        "training": {sample: dict(metrics) for sample, metrics in samples(run, traded).items()},
        "events": happened.facts(run),
        "remarks": remarks(run.baselines),
    }


def console_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Rows for the console, name and value, of what `summary` gave."""
    trades, explained = found["round_trips"], found["to_buy_and_hold"]
    yield "round trips, won", f"{trades['count']:,}" + ("" if not trades["count"] else f", {trades['win_rate']:.0%}")
    if found["p_value"] is not None:
        yield "p-value of its timing", f"{found['p_value']:.3f}, from {found['draws']} shuffles"
    if explained is not None:
        alpha = f"{explained['alpha']:+.1%} ± {explained['alpha_error']:.1%}"
        yield "alpha a year, beta to buy and hold", f"{alpha}, {explained['beta']:.3f} ± {explained['beta_error']:.3f}"
    for sample, metrics in found["training"].items():
        if "sharpe" in metrics:
            halted = ", halted by its limits" if metrics.get("denied_halted") else ""
            error = found["sharpe_error"] if sample == "out_of_sample" else None
            spread = "" if error is None else f" ± {error:.2f}"
            yield f"Sharpe ratio, {_SAID.get(sample, sample)}", f"{metrics['sharpe']:.2f}{spread}{halted}"
    if found["unsized_targets"]:
        yield "targets too small for an order", f"{found['unsized_targets']:,}"
