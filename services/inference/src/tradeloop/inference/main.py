"""Composition root of the inference service."""

from __future__ import annotations

from contextlib import closing

from tradeloop.common.bar_store.sql import SqlBarStore
from tradeloop.common.bus.kafka import KafkaBus
from tradeloop.common.bus.port import Bus
from tradeloop.common.clock import Clock, SystemClock
from tradeloop.common.errors import UserError
from tradeloop.common.feature_store.port import FeatureStore
from tradeloop.common.model_store.onnx_policy import OnnxPolicy
from tradeloop.common.runtime.health import serve
from tradeloop.common.runtime.logs import configure_logging
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.settings import in_one_line, load_settings
from tradeloop.common.strategy import load
from tradeloop.inference.adapters.bus_history import BusHistory
from tradeloop.inference.adapters.http_predictions import PATH, HttpPredictions
from tradeloop.inference.application import Inference
from tradeloop.inference.config import NO_FEATURE_ROOT, Settings


def build(settings: Settings, bus: Bus, clock: Clock) -> Inference:
    """The service, with its model registry and its memory of what was published."""
    from tradeloop.common.model_store.mlflow import MlflowModelStore  # importing MLflow takes seconds

    bars = SqlBarStore(settings.database_url.get_secret_value(), clock)
    models = MlflowModelStore(settings.mlflow_tracking_uri.get_secret_value())
    return Inference(
        settings.read_portfolios(),
        load,
        models,
        OnnxPolicy,
        BusHistory(bus, bars),
        clock,
        online=_online(settings, clock) if settings.features == "online" else None,
        online_wait_s=settings.online_wait_s,
        viewed=settings.predict.token is not None,
    )


def predictions(settings: Settings, clock: Clock) -> HttpPredictions:
    """Predictions over HTTP, with a feature store of their own where there is one."""
    told, stored = settings.predict, settings.predict.token is not None and settings.feature_root is not None
    return HttpPredictions(
        told.token,
        clock,
        _online(settings, clock) if stored else None,
        at_once=told.at_once,
        timeout_s=told.timeout_s,
        max_bytes=told.max_bytes,
        max_age_s=told.max_age_s,
    )


def _online(settings: Settings, clock: Clock) -> FeatureStore:
    """The store of current features. Raises `UserError` where it is not configured."""
    from tradeloop.common.feature_store.feast.store import FeastFeatureStore  # importing Feast takes seconds

    if settings.feature_root is None:
        raise UserError(NO_FEATURE_ROOT)
    return FeastFeatureStore(
        settings.feature_root,
        clock,
        registry=settings.feature_registry,
        online_store=settings.feature_online_store,
    )


def main() -> None:
    """Run against Kafka until SIGTERM."""
    configure_logging()
    with in_one_line():
        settings, clock = load_settings(Settings), SystemClock()
        bus, door = KafkaBus(settings.kafka), predictions(settings, clock)
        for contradiction in settings.contradictions():
            raise UserError(contradiction)

        def start() -> Runner:
            service = build(settings, bus, clock)
            door.ask(service)
            return Runner(service, bus, clock)

        with closing(door):
            serve(start, settings.http, doors={PATH: door}, of=settings)


if __name__ == "__main__":
    main()
