"""The one place where the client's errors become the port's."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from confluent_kafka import KafkaError, KafkaException

from tradeloop.common.bus.port import BusError, BusUnavailable, MessageTooLarge

_REPEAT_S = 10.0


class _NotAgain(logging.Filter):
    """Lets one line of each of the client's threads pass in a while: it reports every attempt to connect."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        who = re.match(r"\w+ \[.*?\] \[.*?\]", record.getMessage())
        if who is None:
            return True
        due = record.created >= self._last.get(who[0], 0.0) + _REPEAT_S
        if due:
            self._last[who[0]] = record.created
        return due


log = logging.getLogger("tradeloop.common.bus.kafka")
"""Also takes what the client itself logs."""
log.addFilter(_NotAgain())
log.addHandler(logging.NullHandler())  # a command that configures no logging is not to show each lost connection

RECOVERING = frozenset({KafkaError._TRANSPORT, KafkaError._RESOLVE, KafkaError._MAX_POLL_EXCEEDED})
"""One connection, one name or one membership lost: the client repairs these, and says so when no broker is left."""

_UNAVAILABLE = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._MSG_TIMED_OUT,
        KafkaError._NOENT,  # no partition has a leader, while a broker starts
        KafkaError._PURGE_INFLIGHT,
        KafkaError._PURGE_QUEUE,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._TRANSPORT,
        KafkaError._WAIT_COORD,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.NOT_CONTROLLER,
        KafkaError.NOT_COORDINATOR,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.UNKNOWN_LEADER_EPOCH,
    }
)
NOT_A_MEMBER = frozenset(
    {
        KafkaError._ASSIGNMENT_LOST,
        KafkaError._FATAL,  # which a client only says once it was fenced: it joins again as another one
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.UNKNOWN_MEMBER_ID,
    }
)


def no_topic(topic: str) -> BusError:
    """The error to raise for a topic that does not exist."""
    return BusError(f"topic {topic} does not exist")


@contextmanager
def translated(doing: str, ignore: Collection[int] = (), level: int = logging.INFO) -> Iterator[None]:
    """Exceptions of the client leave as the port's. Codes to ignore are logged, at this level."""
    try:
        yield
    except KafkaException as exception:
        error: KafkaError = exception.args[0]
        if error.code() not in ignore:
            raise as_bus_error(doing, error) from exception
        log.log(level, "Kafka: %s: %s", doing, error.str())


def refused(error: BusError) -> bool:
    """Whether it says that the user may not do what was asked."""
    codes = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED)
    return isinstance(error.__cause__, KafkaException) and error.__cause__.args[0].code() in codes


def as_bus_error(doing: str, error: KafkaError) -> BusError:
    """The port's error for one of the client's: whether trying again may help is its type."""
    kind: type[BusError] = BusError
    if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        kind = MessageTooLarge
    elif error.code() in _UNAVAILABLE and not error.fatal():
        kind = BusUnavailable
    said = error.str()
    if error.code() == KafkaError.CLUSTER_AUTHORIZATION_FAILED:  # of which a broker tells its whole request
        said = KafkaError(error.code()).str()
    return kind(f"Kafka: {doing}: {said}")
