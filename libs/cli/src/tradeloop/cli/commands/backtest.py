"""`tradeloop backtest`: a trained policy over bars, beside the baselines."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from tradeloop.cli.inputs import Inputs
from tradeloop.cli.models import find, listed_as, standing
from tradeloop.cli.naming import listed
from tradeloop.cli.outcome import counts, print_outcome
from tradeloop.cli.progress import Stages, quiet_logs
from tradeloop.cli.report import figures, write_report
from tradeloop.cli.report.files import stage, write_run
from tradeloop.cli.report.simulated import recorded_backtest, run_of
from tradeloop.cli.source import Source
from tradeloop.cli.understood import spoken_members
from tradeloop.common.evaluation.assessment import Assessment, assess
from tradeloop.common.evaluation.backtest import BacktestResult, backtest
from tradeloop.common.market import from_us, to_us
from tradeloop.common.model_store.onnx_policy import OnnxPolicy
from tradeloop.common.model_store.port import PolicyManifest, RegisteredPolicy, model_name, write_policy
from tradeloop.common.strategy import Strategy
from tradeloop.common.strategy.fit import check_fit


def run_backtest(inputs: Inputs, model: str, home: Path, seed: int | None, out: Path | None) -> None:
    """Run and print; see `tradeloop backtest --help`. Raises `UserError` for wrong input.

    `seed` is that of the random baseline; the model's own where None.
    """
    quiet_logs()
    stages = Stages()
    with ExitStack() as resources:
        staging = None if out is None else resources.enter_context(stage(out))
        strategy, source = inputs.open(stages, "Reading bars")
        with stages.stage("Loading the model"):
            registered = find(model, home, model_name(strategy.name, source.universe.name))
            manifest = registered.policy.manifest
            named = f"model {_called(registered)}"
            check_fit(manifest, strategy, len(source.universe.ids), named, f"strategy {strategy.name} on these bars")
        portfolio, features, actor = (
            source.portfolio(strategy),
            source.features(strategy),
            OnnxPolicy(registered.policy),
        )
        seed = manifest.seed if seed is None else seed
        with stages.stage("Backtest and baselines"):
            recording = None
            if staging is None:
                result = backtest(portfolio, strategy, source.bars, features, actor)
            else:
                result, recording = recorded_backtest(portfolio, strategy, source.bars, features, actor, registered)
            judged = assess(portfolio, strategy, source.bars, features, result, seed)
        if staging is not None and recording is not None:
            with stages.stage("Writing the report"):
                known = listed_as(registered, home)
                summary = _summary(
                    registered, source, strategy, result, judged, seed, {} if known is None else standing(known)
                )
                run = run_of(recording, result, judged, summary, source.name)
                if known is not None:
                    run = replace(run, training=_trained(known.metrics))
                summary |= counts(run) | figures.summary(run)
                write_run(staging, run)
                write_report(staging, run)
                write_policy(staging / "model", registered.policy)
    console = Console()

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False, highlight=False)

    bars = source.bars
    say(
        f"{len(bars):,} bars of {source.name}, {from_us(bars.open_us[0]):%Y-%m-%d %H:%M} to "
        f"{from_us(bars.open_us[-1]):%Y-%m-%d %H:%M} UTC, with model {_called(registered)}"
    )
    first, last, selected = (
        _minute(text) for text in (manifest.trained_from, manifest.trained_to, manifest.selected_to)
    )
    chosen = f", and chosen on the bars to {selected}" if selected else ""
    say(f"The policy was fitted on bars that closed from {first} to {last} UTC{chosen}; seed {manifest.seed}.")
    for line in _differences(manifest, source, strategy):
        say(line)
    print_outcome(console, {"policy": result, **judged.baselines})
    found = judged.significance
    if found is not None and np.count_nonzero(result.fill_quantity):
        say(f"p-value of the policy's timing: {found.p_value:.3f}, from {len(found.draws)} shuffles of its decisions")
    for remark in figures.remarks(judged.baselines):
        say(remark)
    if out is not None:
        say(f"Report: {out / 'report.html'}")


def _called(registered: RegisteredPolicy) -> str:
    return f"{registered.name}:{registered.version}" if registered.version else registered.name


def _trained(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a model's samples, without those that its last checkpoint left among them."""
    samples = tuple(f"{sample}_" for sample in figures.SAMPLES)
    of_checkpoint = ("valid_reward_mean", "valid_growth")
    return {name: value for name, value in metrics.items() if name.startswith(samples) and name not in of_checkpoint}


def _minute(text: str) -> str:
    """An ISO 8601 time of a manifest to the minute."""
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M}" if text else ""


def overlap(manifest: PolicyManifest, source: Source) -> int:
    """How many of the bars close in the range that a policy was trained on, or chosen by."""
    last = manifest.selected_to or manifest.trained_to
    first_us, last_us = (to_us(datetime.fromisoformat(text)) for text in (manifest.trained_from, last))
    return int(((source.bars.close_us >= first_us) & (source.bars.close_us <= last_us)).sum())


def _differences(manifest: PolicyManifest, source: Source, strategy: Strategy) -> list[str]:
    """Lines for people about what was otherwise when the model was trained."""
    lines, universe = [], source.universe
    if seen := overlap(manifest, source):
        lines.append(
            f"Warning: {seen:,} of the {len(source.bars):,} bars lie in the time that the model was trained on: there "
            "it shows what it remembers, not what it is worth"
        )
    if manifest.timeframe and manifest.timeframe != universe.timeframe:
        lines.append(
            f"Warning: the model was trained on bars of {manifest.timeframe}, and these are of {universe.timeframe}"
        )
    if manifest.instrument_ids and manifest.instrument_ids != universe.ids:
        lines.append(
            f"The model was trained on {', '.join(manifest.instrument_ids)} (universe {manifest.universe}), and these "
            f"are {', '.join(universe.ids)}"
        )
    elif manifest.universe != universe.name:
        lines.append(f"The model was trained on universe {manifest.universe}, and this is {universe.name}")
    if manifest.also:
        lines.append(f"The model learnt from {listed(manifest.also)} too, beside the bars of its own name")
    if manifest.reward_id != strategy.reward_id:
        lines.append(
            f"The model was trained for the reward {manifest.reward_id}; rewards here are of {strategy.reward_id}"
        )
    return lines


def _summary(
    registered: RegisteredPolicy,
    source: Source,
    strategy: Strategy,
    result: BacktestResult,
    judged: Assessment,
    seed: int,
    standing: Mapping[str, str],
) -> dict[str, Any]:
    """The facts of `summary.json` but for the counts of a run."""
    manifest = registered.policy.manifest
    return {
        "source": source.name,
        "universe": spoken_members(source),
        "strategy": strategy.name,
        "seed": seed,
        "steps": manifest.steps,
        "bars": len(source.bars),
        "test_bars": len(source.bars),
        "trained_from": manifest.trained_from,
        "trained_to": manifest.trained_to,
        "selected_to": manifest.selected_to,
        "trained_bars_among_these": overlap(manifest, source),
        "final_equity": result.final_equity,
        "baselines": {name: one.final_equity for name, one in judged.baselines.items()},
        "model": {
            "name": registered.name,
            "version": registered.version,
            **standing,
            "onnx_max_abs_diff": manifest.onnx_max_abs_diff,
        },
        "differences": _differences(manifest, source, strategy),
    }
