"""The outcome of a policy beside the baselines, as the commands print and count it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tradeloop.cli.report import figures
from tradeloop.cli.report.files import Run
from tradeloop.cli.report.trading import trading
from tradeloop.common.evaluation.backtest import BacktestResult
from tradeloop.common.market import from_us
from tradeloop.common.risk import APART_CODES, OUTSIDE_CODE, WARN_DENIED


def counts(run: Run) -> dict[str, Any]:
    """How many of each there were in a run, as `summary.json` has it."""
    figures = trading(run)
    return {
        "signals": len(run.signals),
        "orders": figures.orders,
        "fills": figures.fills,
        "transitions": len(run.transitions),
        "decisions": figures.decisions,
        "denials": figures.denials,
        "denied_decisions": figures.denied,
    }


def print_outcome(console: Console, results: Mapping[str, BacktestResult]) -> None:
    """The table of a policy and its baselines, and what the gate denied of the policy's orders: a warning if much."""
    print_whole(console, _table(results))
    ours = results["policy"]
    if ours.halted_at is not None:
        when = f"{from_us(ours.time_us[ours.halted_at]):%Y-%m-%d %H:%M}"
        console.print(
            f"The policy was halted by its limits at {when} UTC, and traded no more.", soft_wrap=True, highlight=False
        )
    if outside := ours.denials.get(OUTSIDE_CODE, 0):
        line = f"Targets outside the universe's members, of which nothing was bought: {OUTSIDE_CODE} {outside:,}"
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    resting = {code: count for code in sorted(APART_CODES - {OUTSIDE_CODE}) if (count := ours.denials.get(code, 0))}
    if resting:
        told = ", ".join(f"{code} {count:,}" for code, count in resting.items())
        line = f"Targets of instruments that were not traded then, of which nothing was ordered: {told}"
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    if inside := {code: count for code, count in ours.denials.items() if code not in APART_CODES}:
        codes = ", ".join(f"{code} {count:,}" for code, count in sorted(inside.items()))
        share = ours.denied / ours.decisions
        warning = "Warning: the" if share > WARN_DENIED else "The"
        line = f"{warning} risk gate denied orders of {share:.1%} of the policy's decisions: {codes}"
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def print_whole(console: Console, table: Table) -> None:
    """A table with every cell in whole: lines longer than the console's are its to wrap, not ours to cut."""
    for column in table.columns:
        column.no_wrap = True
    wide = Console(width=10_000)
    wide.width = max(console.width, wide.measure(table).maximum)
    wide.print(table)


def print_evidence(console: Console, summary: Mapping[str, Any]) -> None:
    """How far to trust the outcome: what `report.figures.summary` found."""
    table = Table(box=None, show_header=False, padding=(0, 2))
    for row in figures.console_rows(summary):
        table.add_row(*row)
    print_whole(console, table)
    for remark in summary["remarks"]:
        console.print(remark, soft_wrap=True, markup=False, highlight=False)


def _table(results: Mapping[str, BacktestResult]) -> Table:
    heads = ("final equity", "return", "drawdown", "fees", "filled", "denied")
    table = Table("", *heads, box=None, padding=(0, 1))
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for name, result in results.items():
        table.add_row(
            name.replace("_", " "),
            f"{result.final_equity:,.2f}",
            f"{result.final_equity / result.equity[0] - 1:+.2%}",
            f"{result.performance.max_drawdown:.2%}",
            f"{result.fill_fee.sum():,.2f}",
            f"{np.count_nonzero(result.fill_quantity):,}",
            f"{sum(result.denials.values()):,}",
        )
    return table
