"""A request in; progress, a registered policy and the news of it out."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import structlog
from numpy.typing import NDArray

from tradeloop.common.bar_store.port import BarStore
from tradeloop.common.bus.port import LogPosition
from tradeloop.common.errors import Unavailable, UserError
from tradeloop.common.evaluation.backtest import backtest
from tradeloop.common.feature_store.port import FeatureSetUnknown, FeatureStore
from tradeloop.common.market import BarArrays, from_us, to_us
from tradeloop.common.messages import Message, ModelReady, TrainingProgressed, TrainingRequested
from tradeloop.common.model_store.port import (
    Actor,
    ModelNotFound,
    ModelStore,
    Policy,
    PolicyManifest,
    RegisteredPolicy,
    model_name,
)
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.service import ServiceDefaults
from tradeloop.common.strategy import Strategy
from tradeloop.common.strategy.rewards import RewardError
from tradeloop.training.domain import summary
from tradeloop.training.ports import Publish, Task, Trained, Trainer

log = structlog.get_logger(__name__)

ALIAS = "champion"
"""Every new policy takes it at once. A gate between candidate and champion needs a verdict on held-out data, which
nothing computes yet."""


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

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        """Train, register, and say so.

        Raises `UserError` for a request that cannot be met, `RewardError` when the strategy's reward breaks its
        contract, `Unavailable` when a store cannot be reached or the run was stopped.
        """
        if not isinstance(message, TrainingRequested):
            return ()
        strategy = self._strategies(message.strategy)
        portfolio = _portfolio(message)
        try:
            return [self._train(message, strategy, portfolio)]
        except (RewardError, UserError) as error:
            raise type(error)(f"training {strategy.name} on {message.universe.name}: {error}") from error

    def not_ready(self) -> Iterable[str]:
        self._bars.check()
        self._models.check()
        return ()

    def close(self) -> None:
        self._bars.close()
        self._features.close()

    def _train(self, request: TrainingRequested, strategy: Strategy, portfolio: Portfolio) -> ModelReady:
        bars = self._read_bars(request)
        features = self._read_features(request, strategy, bars)

        def progress(step: int, total: int, metrics: Mapping[str, float]) -> None:
            news = TrainingProgressed(
                run_id=request.request_id, strategy=strategy.name, step=step, total=total, metrics=dict(metrics)
            )
            try:
                self._publish(news)
            except Unavailable as error:  # nothing depends on it, and hours of work may
                log.warning("progress not published", run=news.run_id, step=step, error=str(error))

        log.info("training", strategy=strategy.name, universe=request.universe.name, bars=len(bars))
        task = Task(strategy, portfolio, bars, features, request.steps, request.seed)
        trained = self._trainer.train(task, progress, self._stop)
        policy = _policy(request, strategy, bars, trained)
        # On the range it was trained on: what it learnt, not what it is worth.
        metrics = summary(backtest(portfolio, strategy, bars, features, self._make_actor(policy)))
        registered = self._register(request, strategy, policy, trained, metrics)
        log.info("trained", model=registered.name, version=registered.version, **metrics)
        return ModelReady(
            request_id=request.request_id,
            strategy=strategy.name,
            universe=request.universe.name,
            model=registered.name,
            version=registered.version,
            alias=ALIAS,
            model_id=policy.model_id,
            feature_set=strategy.feature_set.id,
            metrics=metrics,
        )

    def _read_bars(self, request: TrainingRequested) -> BarArrays:
        universe = request.universe
        start_us, end_us = to_us(request.range.start), to_us(request.range.end)
        bars = self._bars.read(universe.ids, universe.timeframe, start_us, end_us)
        if not len(bars):
            raise UserError(f"no {universe.timeframe} bars from {request.range.start} to {request.range.end}: backfill")
        return bars

    def _read_features(self, request: TrainingRequested, strategy: Strategy, bars: BarArrays) -> NDArray[np.float64]:
        feature_set = strategy.feature_set
        try:
            rows = self._features.read_offline(feature_set.id, request.universe.name, bars.instruments, bars.close_us)
        except FeatureSetUnknown:
            raise UserError(f"feature set {feature_set.id} has no values: preprocess the range first") from None
        return rows.values

    def _register(
        self,
        request: TrainingRequested,
        strategy: Strategy,
        policy: Policy,
        trained: Trained,
        metrics: Mapping[str, float],
    ) -> RegisteredPolicy:
        name = model_name(strategy.name, request.universe.name)
        try:
            champion = self._models.load(name, ALIAS)
        except ModelNotFound:
            champion = None
        if champion is not None and champion.policy == policy:
            return champion  # a request that came again: its effect is there
        manifest = policy.manifest
        registered = self._models.register(
            name,
            policy,
            metrics={**trained.metrics, **{f"in_sample_{key}": value for key, value in metrics.items()}},
            parameters={
                "request_id": request.request_id,
                "strategy": manifest.strategy,
                "universe": manifest.universe,
                "trained_from": manifest.trained_from,
                "trained_to": manifest.trained_to,
                "feature_set": manifest.feature_set,
                "window": str(manifest.window),
                "action_scheme": manifest.action_scheme,
                "reward_id": manifest.reward_id,
                "algorithm": manifest.algorithm,
                "seed": str(manifest.seed),
                "steps": str(manifest.steps),
                **trained.parameters,
            },
        )
        self._models.set_alias(name, ALIAS, registered.version)
        return registered


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


def _policy(request: TrainingRequested, strategy: Strategy, bars: BarArrays, trained: Trained) -> Policy:
    instruments = len(bars.instruments)
    return Policy(
        PolicyManifest(
            strategy=strategy.name,
            universe=request.universe.name,
            instruments=instruments,
            feature_set=strategy.feature_set.id,
            feature_names=strategy.feature_set.names,
            window=strategy.window,
            observation_size=strategy.observation_size(instruments),
            action_scheme=strategy.actions.name,
            action_size=strategy.actions.size(instruments),
            reward_id=strategy.reward_id,
            algorithm=strategy.algorithm,
            seed=request.seed,
            steps=trained.steps,
            trained_from=from_us(bars.close_us[0]).isoformat(),
            trained_to=from_us(bars.close_us[-1]).isoformat(),
            onnx_max_abs_diff=trained.onnx_max_abs_diff,
            onnx_sha256=hashlib.sha256(trained.onnx).hexdigest(),
            timeframe=request.universe.timeframe,
            instrument_ids=bars.instruments,
        ),
        trained.onnx,
    )
