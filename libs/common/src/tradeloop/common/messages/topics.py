"""The catalogue of topics: one message type each, declared here and nowhere else.

`docs/topics.md` is generated from it (`tradeloop topics --markdown`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypedDict, TypeVar

from tradeloop.common import messages as m
from tradeloop.common.bus.port import PARTITIONS, Access, TopicSpec
from tradeloop.common.messages.base import uuid5

M_co = TypeVar("M_co", bound=m.Message, covariant=True)

_GIB = 1 << 30


class _Retention(TypedDict):
    retention_days: int
    retention_bytes: int


_LONG: _Retention = {"retention_days": 365, "retention_bytes": 16 * _GIB}
"""How long messages are kept that tell what was done, why, and what came of it."""


@dataclass(frozen=True, slots=True)
class Topic(Generic[M_co]):
    """A named stream of one message type."""

    name: str
    message: type[M_co]
    key: str
    """The partition key, in words."""
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    """Services that read it in their group, and the command."""
    partitions: int = PARTITIONS
    retention_days: int | None = 7
    retention_bytes: int | None = 2 * _GIB
    """As `TopicSpec.retention_bytes`. Enough for 1,000 universes of minute bars, several times over; it is there so
    that no disk is filled by something that nobody expected."""
    stored_first: bool = False
    """Whether a message is stored before anything that its writer publishes next, on whatever topic. It is needed where
    the next one implies that this one is there: after a crash nobody would publish this one again."""

    @property
    def spec(self) -> TopicSpec:
        return TopicSpec(self.name, self.partitions, self.retention_days, self.retention_bytes)


_ALL: tuple[Topic[m.Message], ...] = (
    Topic("ingest.backfill_requested.v1", m.BackfillRequested, "universe", ("cli",), ("ingest",)),
    Topic("ingest.backfill_completed.v1", m.BackfillCompleted, "universe", ("ingest",), ("cli",)),
    Topic("ingest.replay_requested.v1", m.ReplayRequested, "universe", ("cli",), ("ingest",)),
    Topic(
        "ingest.live_requested.v1",
        m.LiveRequested,
        "universe",
        ("cli",),
        ("ingest",),
        retention_days=None,
        retention_bytes=None,
    ),
    Topic("ingest.live_reported.v1", m.LiveReported, "universe", ("ingest",), ("cli",), **_LONG),
    Topic(
        "market.bars.v1",
        m.BarFrame,
        "universe",
        ("ingest",),
        ("preprocess", "execution"),
        retention_days=30,
        retention_bytes=8 * _GIB,
    ),
    Topic("market.events.v1", m.InstrumentChanged, "universe", ("ingest",), ("cli",), stored_first=True, **_LONG),
    Topic("market.trades.v1", m.MarketTrades, "universe", ("ingest",), ("cli",), retention_bytes=8 * _GIB),
    Topic("market.books.v1", m.MarketBooks, "universe", ("ingest",), ("cli",), retention_bytes=8 * _GIB),
    Topic("market.news.v1", m.MarketNews, "universe", ("ingest",), ("cli",), retention_days=30),
    Topic("preprocess.requested.v1", m.PreprocessRequested, "universe", ("cli",), ("preprocess",)),
    Topic("preprocess.completed.v1", m.PreprocessCompleted, "universe", ("preprocess",), ("cli",)),
    Topic("preprocess.features.v1", m.FeaturesComputed, "universe", ("preprocess",), ("inference",)),
    Topic("training.requested.v1", m.TrainingRequested, "strategy", ("cli",), ("training",)),
    Topic("training.progressed.v1", m.TrainingProgressed, "run id", ("training",), ("cli",)),
    Topic("training.model_ready.v1", m.ModelReady, "universe", ("training",), ("inference", "cli"), **_LONG),
    Topic("inference.signals.v1", m.SignalGenerated, "universe", ("inference",), ("execution", "cli")),
    Topic(
        "inference.model_activated.v1",
        m.ModelActivated,
        "universe",
        ("inference",),
        ("cli",),
        retention_days=None,
        retention_bytes=None,
        stored_first=True,
    ),
    Topic("execution.orders.v1", m.OrderUpdated, "universe", ("execution",), ("cli",), **_LONG),
    Topic("execution.fills.v1", m.OrderFilled, "universe", ("execution",), ("cli",), **_LONG),
    Topic("execution.portfolio.v1", m.PortfolioMarked, "universe", ("execution",), ("inference", "cli")),
    Topic("execution.risk.v1", m.RiskVerdict, "universe", ("execution",), ("cli",), **_LONG),
    Topic("execution.events.v1", m.PortfolioEvent, "universe", ("execution",), ("cli",), **_LONG),
    Topic("control.commands.v1", m.PortfolioCommanded, "universe", ("cli",), ("execution",), retention_days=30),
    Topic(
        "control.manifests.v1",
        m.ServiceStarted,
        "service",
        ("ingest", "preprocess", "training", "inference", "execution"),
        ("cli",),
        **_LONG,
    ),
    Topic("experience.transitions.v1", m.Transition, "universe", ("execution",), ("cli",), **_LONG),
)

CATALOGUE: Mapping[str, Topic[m.Message]] = {topic.name: topic for topic in _ALL}
"""Every topic by its name."""

SERVICE_TOPICS: Mapping[str, Sequence[str]] = {
    service: [topic.name for topic in _ALL if service in topic.readers]
    for service in ("ingest", "preprocess", "training", "inference", "execution")
}
"""The topics that each service reads, by the name that is also its consumer group."""

LOOKED_UP: Mapping[str, Sequence[str]] = {
    "ingest": ["execution.portfolio.v1"],  # a replay runs so many frames ahead of the books
}
"""The topics of others that a service reads outside its group, to see how far they are."""

_BY_MESSAGE: Mapping[type[m.Message], Topic[m.Message]] = {topic.message: topic for topic in _ALL}


def topic_of(message: type[m.Message]) -> Topic[m.Message]:
    """The topic that carries a message type."""
    return _BY_MESSAGE[message]


def event_id(message: m.Message) -> str:
    """The message's id: a UUIDv5 of its topic and identity."""
    return message.event_id(_BY_MESSAGE[type(message)].name)


def derived_id(*parts: object) -> str:
    """A UUIDv5 of the given parts, for orders, fills and requests."""
    return uuid5("|".join(map(str, parts)))


def retry_topic(topic: str, group: str) -> str:
    """Where a consumer group puts a message that it will try again."""
    return f"{topic}.retry.{group}"


def dead_letter_topic(topic: str, group: str) -> str:
    """Where a consumer group puts a message that it gave up on."""
    return f"{topic}.dlq.{group}"


def side_topics(topic: TopicSpec, group: str) -> tuple[TopicSpec, TopicSpec]:
    """A consumer group's retry and dead-letter topics: what failed keeps its key, and therefore its partition.

    Both keep it as long, because the retry topic is also the record of which dead letters were replayed.
    """
    return (
        TopicSpec(retry_topic(topic.name, group), topic.partitions, **_LONG),
        TopicSpec(dead_letter_topic(topic.name, group), topic.partitions, **_LONG),
    )


def specs(groups: Mapping[str, Collection[str]]) -> list[TopicSpec]:
    """Every topic of the catalogue, and what each consumer group puts aside of the topics that it reads."""
    beside = (side_topics(CATALOGUE[topic].spec, group) for group, topics in groups.items() for topic in topics)
    return [topic.spec for topic in CATALOGUE.values()] + [spec for pair in beside for spec in pair]


def accesses() -> list[Access]:
    """The rights of each service, as the user of its name: to do what the catalogue says that it does, and no more.

    It reads back what it has written itself, and tries again what it put aside. What a person brings back from the
    dead letters, the person writes.
    """
    return [_access(service) for service in SERVICE_TOPICS]


def _access(service: str) -> Access:
    mine = [topic for topic in _ALL if service in topic.writers]
    aside = [side_topics(CATALOGUE[name].spec, service) for name in SERVICE_TOPICS[service]]
    retries, dead = ({pair[n].name for pair in aside} for n in (0, 1))
    written = {topic.name for topic in mine}
    reads = written | retries | {*SERVICE_TOPICS[service], *LOOKED_UP.get(service, ())}
    return Access(
        user=service,
        group=service,
        reads=frozenset(reads),
        writes=frozenset(written | retries | dead),
        sees=frozenset(CATALOGUE),
    )
