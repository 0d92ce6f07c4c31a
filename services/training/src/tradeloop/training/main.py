"""Composition root of the training service."""

from __future__ import annotations

import threading

from tradeloop.common.bar_store.sql import SqlBarStore
from tradeloop.common.bus.kafka import KafkaBus
from tradeloop.common.bus.port import Bus
from tradeloop.common.clock import Clock, SystemClock
from tradeloop.common.errors import UserError
from tradeloop.common.messages import Message
from tradeloop.common.model_store.onnx_policy import OnnxPolicy
from tradeloop.common.runtime.health import serve
from tradeloop.common.runtime.job import Job
from tradeloop.common.runtime.logs import configure_logging
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.settings import in_one_line, load_settings
from tradeloop.common.strategy import load
from tradeloop.training.application import Training
from tradeloop.training.config import Settings
from tradeloop.training.ports import Progress, Publish, Task, Trained


def build(settings: Settings, bus: Bus, clock: Clock, stop: threading.Event | None = None) -> Training:
    """The service, with its stores. Setting `stop` ends a run that is under way; its request stays uncommitted."""
    # Importing Feast and MLflow takes seconds.
    from tradeloop.common.feature_store.feast.store import FeastFeatureStore
    from tradeloop.common.model_store.mlflow import MlflowModelStore

    return Training(
        strategies=load,
        bars=SqlBarStore(settings.database_url.get_secret_value(), clock),
        features=FeastFeatureStore(
            settings.feature_root,
            clock,
            registry=settings.feature_registry,
            online_store=settings.feature_online_store,
        ),
        models=MlflowModelStore(settings.mlflow_tracking_uri.get_secret_value()),
        trainer=Sb3OnDemand(clock, settings.threads, settings.device),
        make_actor=OnnxPolicy,
        publish=publisher(bus),
        stop=stop or threading.Event(),
    )


class Sb3OnDemand:
    """Imports PyTorch and Stable-Baselines3, which takes seconds, when a training starts."""

    def __init__(self, clock: Clock, threads: int, device: str = "cpu") -> None:
        self._clock, self._threads, self._device = clock, threads, device

    def train(self, task: Task, progress: Progress, stop: threading.Event) -> Trained:
        from tradeloop.training.adapters.sb3 import Sb3Trainer

        return Sb3Trainer(self._clock, self._threads, self._device).train(task, progress, stop)


def publisher(bus: Bus) -> Publish:
    """Publishes at once, by a producer of its own: the runner's sends only when a message was handled."""
    producer = bus.producer()

    def at_once(message: Message) -> None:
        publish(producer, message, Training.name)
        producer.flush(timeout_s=5.0)

    return at_once


def main() -> None:
    """Run against Kafka until SIGTERM; as a job, until nothing is left to learn."""
    configure_logging()
    with in_one_line():
        settings, clock, stop = load_settings(Settings), SystemClock(), threading.Event()
        bus, jobs = KafkaBus(settings.kafka), list[Job]()

        def start() -> Runner:
            service = build(settings, bus, clock, stop)
            if settings.idle_s is None:
                return Runner(service, bus, clock)
            jobs.append(Job(service, bus, clock, settings.idle_s, stop))
            return jobs[-1]

        serve(start, settings.http, stop, of=settings)
        if settings.idle_s is not None and not jobs:
            raise UserError("training was stopped before it could start")
        for job in jobs:
            job.check()


if __name__ == "__main__":
    main()
