"""A request in; progress, a registered policy and the news of it out."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import structlog
from numpy.typing import NDArray

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.bus.port import LogPosition
from tradeloop.common.errors import Unavailable, UserError
from tradeloop.common.evaluation.backtest import BacktestResult, backtest
from tradeloop.common.evaluation.baselines import baselines
from tradeloop.common.feature_store.port import FeatureSetUnknown, FeatureStore
from tradeloop.common.features import shown
from tradeloop.common.market import BarArrays, Universe, from_us, to_us
from tradeloop.common.messages import Message, ModelReady, TrainingProgressed, TrainingRequested
from tradeloop.common.messages.training import CANDIDATE, CHAMPION, MarketRange
from tradeloop.common.model_store.port import (
    Actor,
    ModelStore,
    Policy,
    PolicyManifest,
    RegisteredPolicy,
    model_name,
)
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.metrics import Figure, counted
from tradeloop.common.runtime.service import ServiceDefaults
from tradeloop.common.strategy import Strategy
from tradeloop.common.strategy.rewards import RewardError
from tradeloop.training.domain.figures import summary
from tradeloop.training.domain.gate import Verdict, judge
from tradeloop.training.domain.material import Market, Material, join
from tradeloop.training.domain.scaler import usual_features
from tradeloop.training.ports import Publish, Task, Trained, Trainer

log = structlog.get_logger(__name__)


class Training(ServiceDefaults):
    """The training service. A run is one call of `handle`, however long it takes; setting `stop` ends it."""

    name = "training"
    consumes = (TrainingRequested,)

    def __init__(
        self,
        strategies: Callable[[str], Strategy],
        bars: BarStore,
        features: FeatureStore,
        models: ModelStore,
        trainer: Trainer,
        make_actor: Callable[[Policy], Actor],
        publish: Publish,
        stop: threading.Event,
    ) -> None:
        """`strategies` gives a strategy by name, `make_actor` makes a policy answer, `publish` sends progress."""
        self._strategies, self._make_actor = strategies, make_actor
        self._bars, self._features, self._models = bars, features, models
        self._trainer, self._publish, self._stop = trainer, publish, stop
        self._running = False
        self._progress: tuple[Figure, ...] = ()
        """The figures of the run that goes on, or of the last one."""
        self._ended: Counter[str] = Counter({CANDIDATE: 0, CHAMPION: 0, "failed": 0, "interrupted": 0})
        """How the runs ended."""

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        """Train, register, and say so.

        The new policy is the `candidate`; it is the `champion` too where the gate lets it pass, or the request says so.

        Raises `UserError` for a request that cannot be met, `RewardError` when the strategy's reward breaks its
        contract, `Unavailable` when a store cannot be reached or the run was stopped.
        """
        if not isinstance(message, TrainingRequested):
            return ()
        outcome, self._running = "failed", True
        try:
            ready = self._trained(message)
            outcome = ready.alias
            return [ready]
        except Unavailable:
            outcome = "interrupted"
            raise
        finally:
            self._running = False
            self._ended[outcome] += 1

    def figures(self) -> Iterable[Figure]:
        yield Figure("tradeloop_training_running", float(self._running))
        yield from self._progress
        yield from counted("tradeloop_training_runs_total", {(how,): count for how, count in self._ended.items()})

    def not_ready(self) -> Iterable[str]:
        self._bars.check()
        self._models.check()
        return ()

    def close(self) -> None:
        self._bars.close()
        self._features.close()

    def _trained(self, request: TrainingRequested) -> ModelReady:
        strategy, portfolio = self._strategies(request.strategy), _portfolio(request)
        try:
            return self._train(request, strategy, portfolio)
        except (RewardError, UserError) as error:
            raise type(error)(f"training {strategy.name} on {request.universe.name}: {error}") from error

    def _train(self, request: TrainingRequested, strategy: Strategy, portfolio: Portfolio) -> ModelReady:
        asked = (_own(request), *request.also)
        if request.also and any(one.universe.members or one.universe.events for one in asked):
            raise UserError("members in time and events are of one universe: leave them out, or the further markets")
        markets = [self._read(one, strategy) for one in asked]
        material = join(markets, strategy.hyper_parameters.validation)

        def progress(step: int, total: int, metrics: Mapping[str, float]) -> None:
            self._progress = tuple(_figures(request, step, total, metrics))
            self.beat()
            news = TrainingProgressed(
                run_id=request.request_id, strategy=strategy.name, step=step, total=total, metrics=dict(metrics)
            )
            try:
                self._publish(news)
            except Unavailable as error:  # nothing depends on it, and hours of work may
                log.warning("progress not published", run=news.run_id, step=step, error=str(error))

        self._progress = tuple(_figures(request, 0, request.steps, {}))
        self.beat()
        bars, features, segments = material.bars, material.features, material.segments
        apart = sum(stop - split for _, split, stop in segments)
        log.info(
            "training",
            strategy=strategy.name,
            universe=request.universe.name,
            markets=len(markets),
            bars=len(bars),
            kept_apart=apart,
        )
        task = Task(strategy, portfolio, bars, features, request.steps, request.seed, segments, material.hidden)
        trained = self._trainer.train(task, progress, self._stop)
        self.beat()
        policy = _policy(request, strategy, material, trained)
        figures, verdict = self._examine(task, policy, trained)
        if request.promote and not verdict.passed:
            verdict = replace(verdict, passed=True, reason=f"promoted by request, although {verdict.reason}")
        self.beat()
        registered = self._register(request, strategy, policy, trained, figures, verdict)
        alias = CHAMPION if verdict.passed else CANDIDATE
        log.info(
            "trained",
            model=registered.name,
            version=registered.version,
            alias=alias,
            reason=verdict.reason,
            steps=trained.steps,
            best_step=trained.best_step,
            **figures,
        )
        return ModelReady(
            request_id=request.request_id,
            strategy=strategy.name,
            universe=request.universe.name,
            model=registered.name,
            version=registered.version,
            alias=alias,
            model_id=policy.model_id,
            feature_set=strategy.feature_set.id,
            metrics=figures,
            reason=verdict.reason,
        )

    def _examine(self, task: Task, policy: Policy, trained: Trained) -> tuple[dict[str, float], Verdict]:
        """The policy's figures on both parts of the range, and the gate's word on it."""
        strategy, actor = task.strategy, self._make_actor(policy)

        def tried(start: int, stop: int) -> BacktestResult:
            part = slice(start, stop)
            bars, features = task.bars.slice(start, stop), task.features[part]
            hidden = None if task.hidden is None else task.hidden[part]
            return backtest(task.portfolio, strategy, bars, features, actor, hidden=hidden)

        learnt = [tried(start, split) for start, split, _ in task.segments]
        # On the bars that it was trained on: what it learnt, not what it is worth.
        figures = {f"in_sample_{key}": value for key, value in summary(learnt).items()}
        # As many bars before those kept apart as fill the window: the first decision is for the first of them.
        apart = [(max(start, split - strategy.window), stop) for start, split, stop in task.segments if split < stop]
        results = [tried(*part) for part in apart]
        holds = [
            baselines(task.portfolio, strategy, task.bars.slice(*part), task.features[slice(*part)])["buy_and_hold"]
            for part in apart
        ]
        if results:
            figures |= {f"valid_{key}": value for key, value in summary(results).items()}
        first = strategy.window - 1
        curves = [result.equity[first:] for result in results]
        rivals = {
            "cash": [np.ones_like(curve) for curve in curves],
            "buy_and_hold": [result.equity[first:] for result in holds],
        }
        verdict = judge(curves, rivals, checkpoints=len(trained.curve))
        return figures | {f"valid_errors_above_{name}": value for name, value in verdict.errors.items()}, verdict

    def _read(self, market: MarketRange, strategy: Strategy) -> Market:
        bars = self._read_bars(market)
        return Market(bars, *shown(self._read_features(market.universe, strategy, bars), market.universe))

    def _read_bars(self, market: MarketRange) -> BarArrays:
        universe = market.universe
        start_us, end_us = to_us(market.range.start), to_us(market.range.end)
        bars = self._bars.read(universe.ids, universe.timeframe, start_us, end_us)
        if not len(bars):
            raise UserError(
                f"universe {universe.name} has no {universe.timeframe} bars from {market.range.start} to "
                f"{market.range.end}: backfill"
            )
        return bars

    def _read_features(self, universe: Universe, strategy: Strategy, bars: BarArrays) -> NDArray[np.float64]:
        feature_set = strategy.feature_set
        try:
            rows = self._features.read_offline(feature_set.id, universe.name, bars.instruments, bars.close_us)
        except FeatureSetUnknown:
            raise UserError(f"feature set {feature_set.id} has no values: preprocess the range first") from None
        return rows.values

    def _register(
        self,
        request: TrainingRequested,
        strategy: Strategy,
        policy: Policy,
        trained: Trained,
        figures: Mapping[str, float],
        verdict: Verdict,
    ) -> RegisteredPolicy:
        name = model_name(strategy.name, request.universe.name)
        registered = self._registered(name, request.request_id)
        if registered is None or registered.policy != policy:
            manifest = policy.manifest
            registered = self._models.register(
                name,
                policy,
                metrics=figures,
                parameters={
                    "request_id": request.request_id,
                    "strategy": manifest.strategy,
                    "universe": manifest.universe,
                    "also": ",".join(one.universe.name for one in request.also),
                    "trained_from": manifest.trained_from,
                    "trained_to": manifest.trained_to,
                    "selected_to": manifest.selected_to,
                    "feature_set": manifest.feature_set,
                    "window": str(manifest.window),
                    "action_scheme": manifest.action_scheme,
                    "reward_id": manifest.reward_id,
                    "algorithm": manifest.algorithm,
                    "seed": str(manifest.seed),
                    "steps": str(manifest.steps),
                    "best_step": str(trained.best_step),
                    "promoted": "by request" if request.promote else "by the gate" if verdict.passed else "no",
                    "reason": verdict.reason,
                    **trained.parameters,
                },
                curve=[(point.step, point.metrics) for point in trained.curve],
            )
        # Again where the request came again: the last time may have ended between these steps.
        self._models.set_alias(name, CANDIDATE, registered.version)
        if verdict.passed:
            self._models.set_alias(name, CHAMPION, registered.version)
        return registered

    def _registered(self, name: str, request_id: str) -> RegisteredPolicy | None:
        """The version that the same request left when it came before; the last, where there are several."""
        versions = [
            int(one.version)
            for one in self._models.versions()
            if one.name == name and one.parameters.get("request_id") == request_id
        ]
        return self._models.load(name, str(max(versions))) if versions else None


def _figures(request: TrainingRequested, step: int, total: int, metrics: Mapping[str, float]) -> Iterator[Figure]:
    labels = request.strategy, request.universe.name
    yield Figure("tradeloop_training_steps", step, labels)
    yield Figure("tradeloop_training_planned_steps", total, labels)
    for part, name in (("learnt", "reward"), ("apart", "valid_reward_mean")):
        if name in metrics:
            yield Figure("tradeloop_training_reward", metrics[name], (*labels, part))


def _own(request: TrainingRequested) -> MarketRange:
    """The market that the request names first, whose model it is."""
    return MarketRange(universe=request.universe, range=request.range)


def _portfolio(request: TrainingRequested) -> Portfolio:
    if not request.portfolio:
        return Portfolio(name=request.strategy, universe=request.universe, strategy=request.strategy)
    portfolio = Portfolio.model_validate_json(request.portfolio)
    if portfolio.universe != request.universe:
        raise UserError(
            f"portfolio {portfolio.name} trades universe {portfolio.universe.name}, but training was asked for on "
            f"{request.universe.name} as defined in the request: give both the same universe"
        )
    return portfolio


def _policy(request: TrainingRequested, strategy: Strategy, material: Material, trained: Trained) -> Policy:
    instruments = len(material.bars.instruments)
    close_us, segments = material.bars.close_us, material.segments
    fitted_to, selected_to = (
        from_us(max(int(close_us[one[end] - 1]) for one in segments)).isoformat() for end in (1, 2)
    )
    means, deviations = usual_features(material.features, segments)
    return Policy(
        PolicyManifest(
            strategy=strategy.name,
            universe=request.universe.name,
            instruments=instruments,
            feature_set=strategy.feature_set.id,
            feature_names=tuple(feature.name for feature in strategy.features),
            window=strategy.window,
            observation_size=strategy.observation_size(instruments),
            action_scheme=strategy.actions.name,
            action_size=strategy.actions.size(instruments),
            reward_id=strategy.reward_id,
            algorithm=strategy.algorithm,
            seed=request.seed,
            steps=trained.steps,
            trained_from=from_us(min(int(close_us[start]) for start, _, _ in segments)).isoformat(),
            trained_to=fitted_to,
            selected_to=selected_to if selected_to != fitted_to else "",
            onnx_max_abs_diff=trained.onnx_max_abs_diff,
            onnx_sha256=hashlib.sha256(trained.onnx).hexdigest(),
            timeframe=request.universe.timeframe,
            instrument_ids=material.bars.instruments,
            also=tuple(one.universe.name for one in request.also),
            feature_means=means,
            feature_deviations=deviations,
        ),
        trained.onnx,
    )
