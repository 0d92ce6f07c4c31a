"""`tradeloop demo`: the whole loop on a file of bars, and the proof that the backtest agrees with it."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tradeloop.cli.client.client import Failed
from tradeloop.cli.client.embedded import EmbeddedStack, embedded
from tradeloop.cli.commands.simulated import NAMES, Simulated, simulated, trade_live
from tradeloop.cli.commands.train import in_order, prepare, train
from tradeloop.cli.homes import check_home, remember
from tradeloop.cli.inputs import Inputs
from tradeloop.cli.markets import Learnt, cut, learnt, named
from tradeloop.cli.outcome import counts, print_evidence, print_outcome, print_whole
from tradeloop.cli.progress import Stages, quiet_logs
from tradeloop.cli.report import figures, text, write_report
from tradeloop.cli.report.files import Run, stage, write_run
from tradeloop.cli.report.messages import MESSAGES, PORTFOLIO, write_messages
from tradeloop.cli.report.transitions import rows_of
from tradeloop.cli.source import Source, split
from tradeloop.cli.understood import spoken_members
from tradeloop.common.arrays import Floats
from tradeloop.common.clock import SystemClock
from tradeloop.common.contracts.strategy import check_strategy
from tradeloop.common.errors import UserError
from tradeloop.common.evaluation.assessment import assess
from tradeloop.common.evaluation.backtest import BacktestResult, backtest
from tradeloop.common.evaluation.parity import difference_from_backtest
from tradeloop.common.features import shown
from tradeloop.common.messages import (
    FeaturesComputed,
    ModelReady,
    OrderFilled,
    OrderUpdated,
    PortfolioMarked,
    ReplayRequested,
    RiskVerdict,
    SignalGenerated,
    Transition,
)
from tradeloop.common.messages.topics import derived_id
from tradeloop.common.messages.training import CANDIDATE
from tradeloop.common.model_store.onnx_policy import OnnxPolicy
from tradeloop.common.model_store.port import RegisteredPolicy, write_policy
from tradeloop.common.portfolio import Portfolio, portfolio_yaml
from tradeloop.common.strategy import Strategy
from tradeloop.training.domain.material import rows_known, segment

_GROUNDS = ("features", "action")
"""The vectors of a signal that the report does not need: features have a topic, and actions are in the transitions."""


def run_demo(
    inputs: Inputs,
    out: Path,
    seeds: Sequence[int],
    steps: int,
    kept: Path | None,
    promote: bool = False,
    live_source: str | None = None,
) -> None:
    """Train, trade, check and report; see `tradeloop demo --help`. `kept` is the home that is kept, if any.

    `live_source` names a source that is traded live, in the place of a replay of files.

    Raises `UserError` for wrong input, `ParityBroken` when parity does not hold.
    """
    started = time.monotonic()
    quiet_logs()
    stages = Stages()
    if live_source not in (None, *NAMES):
        raise UserError(f"--source {live_source}: a demo can trade live from {', '.join(NAMES)}")
    if live_source is not None and inputs.actions is not None:
        raise UserError(f"--actions is of files of bars, and --source {live_source} trades live: leave one of them out")
    if live_source is not None and inputs.members is not None:
        raise UserError(f"--members is of files of bars, and --source {live_source} trades live: leave one of them out")
    if live_source is not None and inputs.events is not None:
        raise UserError(f"--events is of files of bars, and --source {live_source} trades live: leave one of them out")
    with ExitStack() as resources:
        staging = resources.enter_context(stage(out))
        temporary = Path(tempfile.gettempdir(), f"tradeloop-{secrets.token_hex(8)}")
        # Before it is made: Ctrl-C may come between the making of a folder and whatever follows.
        resources.callback(shutil.rmtree, temporary, ignore_errors=True)
        temporary.mkdir(mode=0o700)
        market = None
        if live_source is not None:
            market = simulated(inputs, temporary, SystemClock(), seeds[0])
            inputs = market.inputs
        strategy, source = inputs.open(stages, "Reading bars")
        if market is not None:
            source = market.known(source)
        with stages.stage("Checking the strategy"):
            train_bars = split(source, strategy) if market is None else market.bars
            markets = learnt(source, train_bars, strategy)
            stages.warn(check_strategy(strategy, source.portfolio(strategy).limits))
        home = kept or temporary
        check_home(home, source)
        with stages.stage("Starting the five services"):
            # A book starts from nothing in each demo, whatever the home remembers of an earlier one.
            ledger = temporary / "ledger.db"
            clock = None if market is None else market.clock
            sources = None if market is None else market.sources(temporary)
            stack = resources.enter_context(
                embedded(home, [_portfolio(source, strategy)], clock, ledger=ledger, sources=sources)
            )
        demo = _Demo(stack, stages, markets, strategy, steps, promote, market)
        registered = demo.train(seeds)
        run, results, summary = demo.trade(registered, staging)
        with stages.stage("Writing the report"):
            summary["wall_s"] = round(time.monotonic() - started, 3)
            write_run(staging, run)
            write_report(staging, run)
            write_policy(staging / "model", registered.policy)
    _print(out, kept, summary, results)


def _portfolio(source: Source, strategy: Strategy) -> Portfolio:
    """The portfolio of the bars, which trades the newest policy whatever the gate says of it: that is to be seen."""
    return source.portfolio(strategy).model_copy(update={"model_alias": CANDIDATE})


class _Demo:
    """One run of the loop through the embedded stack."""

    def __init__(
        self,
        stack: EmbeddedStack,
        stages: Stages,
        markets: Sequence[Learnt],
        strategy: Strategy,
        steps: int,
        promote: bool,
        market: Simulated | None,
    ) -> None:
        self._market = market
        source, train_bars = markets[0].source, markets[0].bars
        self._stack, self._stages, self._source, self._strategy = stack, stages, source, strategy
        self._markets, self._train_bars, self._steps, self._promote = markets, train_bars, steps, promote
        self._portfolio = _portfolio(source, strategy)
        self._traded = source.bars.slice(train_bars, len(source.bars))
        self._trained: dict[int, ModelReady] = {}

    def train(self, seeds: Sequence[int]) -> RegisteredPolicy:
        """Load the bars, compute features, train on the first part of them by each seed; gives what will trade."""
        stack = self._stack
        prepare(stack.client, self._stages, self._markets, self._strategy, stack.home)
        remember(stack.home, self._source)
        for seed in in_order(seeds):
            self._trained[seed] = self._ready = train(
                stack.client, self._stages, self._markets, self._strategy, seed, self._steps, self._promote
            )
        return stack.models.load(self._ready.model, self._ready.version)

    def trade(self, registered: RegisteredPolicy, out: Path) -> tuple[Run, dict[str, BacktestResult], dict[str, Any]]:
        """Replay the rest as live bars, keep the messages in `out`, and hold the result against the backtest.

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
            if self._market is None:
                stack.replay(replay, lambda: report(stack.count(SignalGenerated)))
            else:
                trade_live(stack, self._market, source, self._traded, report)
            events_per_s = (stack.events - before) / (time.monotonic() - began)
        write_messages(stack.bus, out / MESSAGES)
        (out / PORTFOLIO).write_text(portfolio_yaml(self._portfolio), encoding="utf-8")
        read = stack.take
        signals, marks = read(SignalGenerated, _GROUNDS), read(PortfolioMarked)
        orders, fills, transitions = read(OrderUpdated), read(OrderFilled), read(Transition)
        seen, _ = shown(rows_of(self._traded, self._strategy, read(FeaturesComputed)), source.universe)
        if not len(signals) == len(marks) == total:
            raise Failed(f"{total} bars gave {len(marks)} marks and {len(signals)} signals; each bar must give one")
        manifest = registered.policy.manifest
        with self._stages.stage("Backtest and baselines"):
            known = source.features(self._strategy)
            learnt, features = known[: self._train_bars], known[self._train_bars :]
            learnt, _ = shown(learnt, source.universe)
            fitted = segment(learnt, self._strategy.hyper_parameters.validation)
            actor = OnnxPolicy(registered.policy)
            expected = backtest(self._portfolio, self._strategy, self._traded, features, actor)
            judged = assess(self._portfolio, self._strategy, self._traded, features, expected, manifest.seed)
            by_seed = self._by_seed(features) if len(self._trained) > 1 else []
        difference = difference_from_backtest(marks, fills, self._traded, expected)
        summary: dict[str, Any] = {
            "source": source.name,
            "universe": spoken_members(source),
            "strategy": self._strategy.name,
            "seed": manifest.seed,
            "steps": manifest.steps,
            "bars": len(source.bars),
            "train_bars": self._train_bars,
            "fitted_bars": int(rows_known(learnt[: fitted.split]).sum()),
            "validation_bars": fitted.stop - fitted.split,
            "test_bars": total,
            "markets": [one.facts for one in self._markets],
            "learnt_from": [line for line in (named(self._markets), cut(self._markets)) if line],
            "dead_letters": stack.dead_letters,
            "final_equity": marks[-1].equity,
            "backtest_final_equity": expected.final_equity,
            "parity_rel_diff": difference,
            "baselines": {name: result.final_equity for name, result in judged.baselines.items()},
            "model": {
                "name": registered.name,
                "version": registered.version,
                "alias": self._ready.alias,
                "reason": self._ready.reason,
                "onnx_max_abs_diff": manifest.onnx_max_abs_diff,
            },
            "events_per_s": round(events_per_s, 1),
        }
        if by_seed:
            summary["seeds"] = by_seed
            summary["seeds_interquartile_mean"] = interquartile_mean([one["final_equity"] for one in by_seed])
        run = Run(
            portfolio=self._portfolio,
            strategy=self._strategy,
            bars=self._traded,
            features=seen,
            signals=signals,
            orders=orders,
            fills=fills,
            marks=marks,
            transitions=transitions,
            verdicts=read(RiskVerdict),
            baselines=judged.baselines,
            summary=summary,
            source=source.name,
            significance=judged.significance,
            training=self._ready.metrics,
        )
        summary |= counts(run) | figures.summary(run)
        return run, {"policy": expected, **judged.baselines}, summary

    def _by_seed(self, features: Floats) -> list[dict[str, Any]]:
        """The outcome of each seed's policy over the traded bars, in the backtest."""
        found = []
        for seed, ready in sorted(self._trained.items()):
            policy = self._stack.models.load(ready.model, ready.version).policy
            result = backtest(self._portfolio, self._strategy, self._traded, features, OnnxPolicy(policy))
            found.append({"seed": seed, "version": ready.version, "final_equity": result.final_equity})
        return found


def interquartile_mean(values: Sequence[float]) -> float:
    """The mean of the middle half: a quarter of the values, rounded down, is left out at each end.

    As `rliable` has it: Agarwal et al., Deep RL at the Edge of the Statistical Precipice (2021).
    """
    cut = len(values) // 4
    return float(np.mean(sorted(values)[cut : len(values) - cut]))


def _print(out: Path, kept: Path | None, summary: Mapping[str, Any], results: Mapping[str, BacktestResult]) -> None:
    console = Console()
    if "seeds" in summary:
        print_whole(console, _seeds(summary))
    print_outcome(console, results)
    for line in summary["learnt_from"]:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    model = summary["model"]
    apart, own = summary["validation_bars"], " of its own" if summary["learnt_from"] else ""
    chosen = f"checkpoint chosen on the next {apart:,}, " if apart else ""
    console.print(
        f"Traded: {model['name']} version {model['version']}, seed {summary['seed']}: fitted on "
        f"{text.count(summary['fitted_bars'], 'bar')}{own}, {chosen}"
        f"traded on the last {summary['test_bars']:,}; {text.count(summary['fills'], 'fill')}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    console.print(f"It is a {model['alias']}: {model['reason']}", soft_wrap=True, markup=False, highlight=False)
    print_evidence(console, summary)
    console.print(f"Backtest equals live to {summary['parity_rel_diff']:.1e}", highlight=False)
    if kept is not None:
        console.print(f"Models: tradeloop models list --home {kept}", soft_wrap=True, markup=False, highlight=False)
    console.print(
        f"Any order explained: tradeloop explain ORDER_ID --run {out}", soft_wrap=True, markup=False, highlight=False
    )
    console.print(f"Report: {out / 'report.html'}", soft_wrap=True, markup=False, highlight=False)


def _seeds(summary: Mapping[str, Any]) -> Table:
    """The outcome of each seed's policy out of sample."""
    table = Table("seed", "version", "final equity, out of sample", "", box=None, padding=(0, 2))
    table.columns[2].justify = "right"
    for one in summary["seeds"]:
        traded = "traded" if one["version"] == summary["model"]["version"] else ""
        table.add_row(str(one["seed"]), one["version"], f"{one['final_equity']:,.2f}", traded)
    table.add_row("interquartile mean", "", f"{summary['seeds_interquartile_mean']:,.2f}", "")
    return table
