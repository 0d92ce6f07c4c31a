"""`tradeloop demo`: the whole loop on a file of bars, and the proof that the backtest agrees with it."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tradeloop.cli.client.client import Failed
from tradeloop.cli.client.embedded import EmbeddedStack, embedded
from tradeloop.cli.commands.train import train
from tradeloop.cli.progress import Stages, quiet_logs
from tradeloop.cli.report import write_report
from tradeloop.cli.report.files import Run, stage, write_run
from tradeloop.cli.report.trading import trading
from tradeloop.cli.source import Source, open_source, split
from tradeloop.common.contracts.strategy import check_strategy
from tradeloop.common.evaluation.backtest import backtest
from tradeloop.common.evaluation.baselines import baselines
from tradeloop.common.evaluation.parity import difference_from_backtest
from tradeloop.common.messages import (
    OrderFilled,
    OrderUpdated,
    PortfolioMarked,
    ReplayRequested,
    RiskVerdict,
    SignalGenerated,
    Transition,
)
from tradeloop.common.messages.topics import derived_id
from tradeloop.common.model_store.onnx_policy import OnnxPolicy
from tradeloop.common.model_store.port import RegisteredPolicy, model_name, write_policy
from tradeloop.common.risk import WARN_DENIED
from tradeloop.common.strategy import Strategy, load

_GROUNDS = ("features", "observation", "action")
"""The vectors of a signal that the report does not need: they are in the transitions, too."""


def run_demo(path: Path | None, strategy_name: str, out: Path, seed: int, steps: int) -> None:
    """Train, trade, check and report; see `tradeloop demo --help`.

    Raises `UserError` for wrong input, `ParityBroken` when parity does not hold.
    """
    started = time.monotonic()
    quiet_logs()
    stages = Stages()
    strategy = load(strategy_name)
    with ExitStack() as resources:
        staging = resources.enter_context(stage(out))
        home = Path(tempfile.gettempdir(), f"tradeloop-{secrets.token_hex(8)}")
        # Before it is made: Ctrl-C may come between the making of a folder and whatever follows.
        resources.callback(shutil.rmtree, home, ignore_errors=True)
        home.mkdir(mode=0o700)
        with stages.stage("Checking bars and strategy"):
            source = open_source(path, strategy)
            train_bars = split(source, strategy)
            check_strategy(strategy, source.portfolio(strategy).limits)
        with stages.stage("Starting the five services"):
            stack = resources.enter_context(embedded(home, [source.portfolio(strategy)]))
        demo = _Demo(stack, stages, source, strategy, train_bars, seed, steps)
        registered = demo.train()
        run, summary = demo.trade(registered)
        with stages.stage("Writing the report"):
            summary["wall_s"] = round(time.monotonic() - started, 3)
            write_run(staging, run)
            write_report(staging, run)
            write_policy(staging / "model", registered.policy)
    _print(out, summary)


class _Demo:
    """One run of the loop through the embedded stack."""

    def __init__(
        self,
        stack: EmbeddedStack,
        stages: Stages,
        source: Source,
        strategy: Strategy,
        train_bars: int,
        seed: int,
        steps: int,
    ) -> None:
        self._stack, self._stages, self._source, self._strategy = stack, stages, source, strategy
        self._train_bars, self._seed, self._steps = train_bars, seed, steps
        self._portfolio = source.portfolio(strategy)
        self._traded = source.bars.slice(train_bars, len(source.bars))

    def train(self) -> RegisteredPolicy:
        """Load the bars, compute features, and train on the first part of them."""
        train(
            self._stack.client,
            self._stages,
            self._source,
            self._strategy,
            self._source.range(0, self._train_bars),
            self._seed,
            self._steps,
        )
        name = model_name(self._strategy.name, self._source.universe.name)
        return self._stack.models.load(name, self._portfolio.model_alias)

    def trade(self, registered: RegisteredPolicy) -> tuple[Run, dict[str, Any]]:
        """Replay the rest as live bars, and hold the result against the backtest.

        Raises `ParityBroken` when they differ; the message says where first.
        """
        stack, source, total = self._stack, self._source, len(self._traded)
        replay = ReplayRequested(
            request_id=derived_id("replay", source.universe.name),
            universe=source.universe,
            range=source.range(self._train_bars, len(source.bars)),
        )
        with self._stages.stage("Trading through five services", total) as report:
            before, began = stack.events, time.monotonic()
            stack.replay(replay, lambda: report(stack.count(SignalGenerated)))
            events_per_s = (stack.events - before) / (time.monotonic() - began)
        read = stack.take
        signals, marks = read(SignalGenerated, _GROUNDS), read(PortfolioMarked)
        orders, fills, transitions = read(OrderUpdated), read(OrderFilled), read(Transition)
        if not len(signals) == len(marks) == total:
            raise Failed(f"{total} bars gave {len(marks)} marks and {len(signals)} signals; each bar must give one")
        with self._stages.stage("Backtest and baselines"):
            features = source.features(self._strategy)[self._train_bars :]
            actor = OnnxPolicy(registered.policy)
            expected = backtest(self._portfolio, self._strategy, self._traded, features, actor)
            rules = baselines(self._portfolio, self._strategy, self._traded, features, self._seed)
        difference = difference_from_backtest(marks, fills, self._traded, expected)
        manifest = registered.policy.manifest
        summary: dict[str, Any] = {
            "source": source.name,
            "strategy": self._strategy.name,
            "seed": self._seed,
            "steps": manifest.steps,
            "bars": len(source.bars),
            "train_bars": self._train_bars,
            "test_bars": total,
            "signals": len(signals),
            "orders": len({order.order_id for order in orders}),
            "fills": len(fills),
            "transitions": len(transitions),
            "dead_letters": stack.dead_letters,
            "final_equity": marks[-1].equity,
            "backtest_final_equity": expected.final_equity,
            "parity_rel_diff": difference,
            "baselines": {name: result.final_equity for name, result in rules.items()},
            "model": {
                "name": registered.name,
                "version": registered.version,
                "alias": self._portfolio.model_alias,
                "onnx_max_abs_diff": manifest.onnx_max_abs_diff,
            },
            "events_per_s": round(events_per_s, 1),
        }
        run = Run(
            portfolio=self._portfolio,
            strategy=self._strategy,
            bars=self._traded,
            signals=signals,
            orders=orders,
            fills=fills,
            marks=marks,
            transitions=transitions,
            verdicts=read(RiskVerdict),
            baselines={name: result.equity for name, result in rules.items()},
            summary=summary,
            source=source.name,
        )
        figures = trading(run)
        summary |= {
            "decisions": figures.decisions,
            "denials": figures.denials,
            "denied_decisions": figures.denied,
        }
        return run, summary


def _print(out: Path, summary: Mapping[str, Any]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2))
    capital_lines = {"policy": summary["final_equity"], **summary["baselines"]}
    for name, equity in capital_lines.items():
        table.add_row(f"final equity, {name.replace('_', ' ')}", f"{equity:,.2f}")
    table.add_row("bars traded, fills", f"{summary['test_bars']:,}, {summary['fills']:,}")
    denials = summary["denials"]
    if denials:
        table.add_row("orders denied", ", ".join(f"{code} {count:,}" for code, count in sorted(denials.items())))
    table.add_row("backtest equals live to", f"{summary['parity_rel_diff']:.1e}")
    console = Console()
    console.print(table)
    if summary["denied_decisions"] > WARN_DENIED * summary["decisions"]:
        share = summary["denied_decisions"] / summary["decisions"]
        console.print(
            f"Warning: the risk gate denied orders of {share:.1%} of the decisions; the report says which limits they "
            "broke",
            soft_wrap=True,
        )
    console.print(f"Report: {out / 'report.html'}", soft_wrap=True)
