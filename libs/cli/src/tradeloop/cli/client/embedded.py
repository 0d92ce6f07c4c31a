"""All five services in one process over `MemoryBus`: the embedded stack.

The same services, topics and code as in production; only the adapters differ: SQLite for bars, ledger and
MLflow, files for Feast. One pump steps ingest, preprocess, inference and execution in turn; training, which
takes long, runs beside it in a thread.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tradeloop.cli.client.client import Client, Failed, given_up
from tradeloop.cli.client.deployment import Deployment
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import Partition
from tradeloop.common.clock import Clock, SystemClock
from tradeloop.common.messages import Message, PortfolioEvent
from tradeloop.common.messages.topics import dead_letter_topic, topic_of
from tradeloop.common.model_store.mlflow import MlflowModelStore
from tradeloop.common.model_store.port import ModelStore
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.readback import Messages, all_records, of_kind
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.runtime.service import Service
from tradeloop.execution.config import Settings as ExecutionSettings
from tradeloop.execution.main import build as build_execution
from tradeloop.inference.config import Settings as InferenceSettings
from tradeloop.inference.main import build as build_inference
from tradeloop.ingest.config import Settings as IngestSettings
from tradeloop.ingest.main import build as build_ingest
from tradeloop.preprocess.config import Settings as PreprocessSettings
from tradeloop.preprocess.main import build as build_preprocess
from tradeloop.training.config import Settings as TrainingSettings
from tradeloop.training.main import build as build_training

M = TypeVar("M", bound=Message)

_POLICY = RunPolicy(attempts=2, retry_delay_s=0.05)


class EmbeddedStack:
    """The five services. Use `embedded(...)`, which also takes them down."""

    def __init__(
        self,
        home: Path,
        portfolios: Sequence[Portfolio],
        clock: Clock,
        ledger: Path | None = None,
        features: str = "topic",
        sources: Path | None = None,
    ) -> None:
        self.bus = MemoryBus(max_message_bytes=16_000_000, hands_over=True)
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        deployment = Deployment(
            database_url=f"sqlite:///{home / 'bars.db'}",
            ledger_url=f"sqlite:///{ledger or home / 'ledger.db'}",
            mlflow_tracking_uri=f"sqlite:///{home / 'mlflow.db'}",
            feature_root=home / "features",
            features=features,
            portfolios=tuple(portfolios),
            sources=sources,
        )
        told = deployment.settings
        self._stop = threading.Event()
        self._looked_at: Mapping[Partition, int] = {}
        """How far the events on record were looked at."""
        services: list[Service] = [
            build_ingest(IngestSettings(**told("ingest")), self.bus, clock, threaded=sources is None),
            build_preprocess(PreprocessSettings(**told("preprocess")), self.bus, clock),
            build_inference(InferenceSettings(**told("inference")), self.bus, clock),
            build_execution(ExecutionSettings(**told("execution")), self.bus, clock),
        ]
        training_settings = TrainingSettings(**told("training"))
        self.models: ModelStore = MlflowModelStore(training_settings.mlflow_tracking_uri.get_secret_value())
        training = build_training(training_settings, self.bus, clock, self._stop)
        self.runners = [Runner(service, self.bus, clock, _POLICY) for service in services]
        self._training = Runner(training, self.bus, clock, _POLICY)
        self._thread = threading.Thread(target=self._training.run, args=(self._stop,), name="training", daemon=True)
        self._thread.start()
        self.client = Client(self.bus, clock, say=lambda _: None, wait=self._work, outlived=False)

    @property
    def dead_letters(self) -> int:
        """How many messages the services gave up on."""
        return sum(runner.counters.dead_letters for runner in (*self.runners, self._training))

    @property
    def events(self) -> int:
        """How many messages the services published."""
        return sum(runner.counters.published for runner in (*self.runners, self._training))

    def replay(self, request: Message, on_progress: Callable[[], None]) -> None:
        """Send a replay and run the stack until all is quiet; `on_progress` is called now and then."""
        # Stores and training leave large arrays in cycles, and the loop makes few objects that stay: none of those
        # that are there now need be looked at again.
        gc.collect()
        gc.freeze()
        self.client.send(request)
        turns = 0
        while self.step() or any(runner.waiting for runner in self.runners):
            turns += 1
            if turns % 256 == 0:
                on_progress()
        self._check()

    def step(self) -> int:
        """One turn of every service but training."""
        return sum(runner.step() for runner in self.runners)

    def count(self, kind: type[Message]) -> int:
        """How many messages a topic holds."""
        return sum(self.bus.end_offsets(topic_of(kind).name).values())

    def take(self, kind: type[M], without: Collection[str] = ()) -> Messages[M]:
        """As `Client.stored`, of a stack that is quiet and trades no more: the bus lets go of what is taken."""
        messages = self.client.stored(kind, without)
        for partition, end in self.bus.end_offsets(topic_of(kind).name).items():
            self.bus.drop_before(partition, end)
        return messages

    def close(self) -> None:
        """Stop training, commit, release. Waits for training to notice, which takes a moment."""
        self._stop.set()
        self._thread.join(timeout=30.0)
        for runner in self.runners:
            runner.close()
        gc.unfreeze()

    def _work(self, pause_s: float) -> None:
        """Step the services while the client waits; rest where only training has something to do."""
        if not self.step():
            self._stop.wait(min(pause_s, 0.05))
        self._check()

    def _check(self) -> None:
        """Raise what a service gave up on, and what a portfolio failed at for good: nobody is there to release it."""
        for event in self._failures():
            raise Failed(
                f"portfolio {event.portfolio} failed at the bar of {event.time.isoformat()}, and its decisions are no "
                f"longer taken: {event.reason}"
            )
        if not self.dead_letters:
            return
        for runner in (*self.runners, self._training):
            for kind in runner.service.consumes:
                for record in all_records(self.bus, dead_letter_topic(topic_of(kind).name, runner.service.name)):
                    raise given_up(runner.service.name, record)

    def _failures(self) -> Iterator[PortfolioEvent]:
        """The failures that put a portfolio into quarantine, as far as they are new."""
        topic = topic_of(PortfolioEvent).name
        ends = self.bus.end_offsets(topic)
        for partition, end in ends.items():
            records = self.bus.read(partition, self._looked_at.get(partition, 0), end)
            yield from (event for event in of_kind(records, PortfolioEvent) if event.kind == "quarantined")
        self._looked_at = ends


@contextmanager
def embedded(
    home: Path,
    portfolios: Sequence[Portfolio],
    clock: Clock | None = None,
    ledger: Path | None = None,
    features: str = "topic",
    sources: Path | None = None,
) -> Iterator[EmbeddedStack]:
    """Start the stack in a folder, and take it down in the end, whatever happens.

    `ledger` is another file than the folder's own for books and orders: a run that starts from nothing needs one.
    `features` is where decisions take features from; `sources` the file of the sources of live feeds, which need no
    network and are asked in this thread.
    """
    stack = EmbeddedStack(home, portfolios, clock or SystemClock(), ledger, features, sources)
    try:
        yield stack
    finally:
        stack.close()
