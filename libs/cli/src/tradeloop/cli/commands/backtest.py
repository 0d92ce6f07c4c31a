"""`tradeloop backtest`: a trained policy over a file of bars, beside the baselines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tradeloop.cli.progress import Stages, quiet_logs
from tradeloop.cli.report.figures import remarks
from tradeloop.cli.source import open_source
from tradeloop.common.errors import UserError
from tradeloop.common.evaluation.assessment import assess
from tradeloop.common.evaluation.backtest import BacktestResult, backtest
from tradeloop.common.model_store.onnx_policy import OnnxPolicy
from tradeloop.common.model_store.port import ModelNotFound, Policy, model_name, read_policy
from tradeloop.common.risk import WARN_DENIED
from tradeloop.common.strategy import Strategy, load


def run_backtest(path: Path | None, strategy_name: str, model: str, home: Path) -> None:
    """Run and print; see `tradeloop backtest --help`. Raises `UserError` for wrong input."""
    quiet_logs()
    stages = Stages()
    strategy = load(strategy_name)
    with stages.stage("Reading bars and model"):
        source = open_source(path, strategy)
        policy = _policy(model, home, model_name(strategy.name, source.universe.name))
        _check(policy, strategy)
    with stages.stage("Backtest and baselines"):
        features = source.features(strategy)
        portfolio = source.portfolio(strategy)
        results = {"policy": backtest(portfolio, strategy, source.bars, features, OnnxPolicy(policy))}
        judged = assess(portfolio, strategy, source.bars, features, results["policy"], policy.manifest.seed)
        results |= judged.baselines
    manifest = policy.manifest
    console = Console()
    console.print(
        f"{len(source.bars):,} bars of {source.name}, {source.report.first:%Y-%m-%d %H:%M} to "
        f"{source.report.last:%Y-%m-%d %H:%M} UTC"
    )
    console.print(f"The policy was trained on {manifest.trained_from} to {manifest.trained_to}, seed {manifest.seed}.")
    console.print(_table(results))
    ours, found = results["policy"], judged.significance
    if found is not None and np.count_nonzero(ours.fill_quantity):
        console.print(
            f"p-value of the policy's timing: {found.p_value:.3f}, from {len(found.draws)} shuffles of its decisions",
            soft_wrap=True,
        )
    for remark in remarks(results):
        console.print(remark, soft_wrap=True)
    if ours.denied > WARN_DENIED * ours.decisions:
        codes = ", ".join(f"{code} {count:,}" for code, count in sorted(ours.denials.items()))
        share = ours.denied / ours.decisions
        console.print(f"Warning: the risk gate denied orders of {share:.1%} of the decisions: {codes}", soft_wrap=True)


def _policy(model: str, home: Path, name: str) -> Policy:
    """The policy from a folder, or from the home's registry."""
    try:
        if Path(model).is_dir():
            return read_policy(Path(model))
        if not (home / "mlflow.db").exists():
            raise UserError(f"{home} has no models: run `tradeloop train` first, or name a folder with --model")
        from tradeloop.common.model_store.mlflow import MlflowModelStore

        return MlflowModelStore(f"sqlite:///{home / 'mlflow.db'}").load(name, model).policy
    except (ModelNotFound, ValueError) as error:
        raise UserError(f"{error}; run `tradeloop train`, or name a folder with --model") from error


def _check(policy: Policy, strategy: Strategy) -> None:
    trained, here = policy.manifest.feature_set, strategy.feature_set.id
    if trained != here:
        raise UserError(
            f"the model was trained on the features {trained}, strategy {strategy.name} now has {here}: train it again"
        )


def _table(results: dict[str, BacktestResult]) -> Table:
    table = Table(
        "", "final equity", "return", "max drawdown", "fees", "orders filled", "orders denied", box=None, padding=(0, 2)
    )
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
