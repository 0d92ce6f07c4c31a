"""The services as Kafka knows them: how many processes each has, and how many messages wait for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tradeloop.common.bus.kafka import Examined, KafkaBus
from tradeloop.common.bus.port import Bus, BusError, BusUnavailable
from tradeloop.common.messages.topics import SERVICE_TOPICS, retry_topic


@dataclass(frozen=True, slots=True)
class ServiceState:
    """A service, seen from outside."""

    service: str
    processes: int
    """Members of its consumer group now."""
    behind: Mapping[str, int]
    """Messages that it has not finished, by topic; topics without any are left out."""
    unknown: str = ""
    """Why nothing can be told of it; empty where it can."""

    @property
    def stands_still(self) -> bool:
        """Whether messages wait and nobody is there for them."""
        return not self.unknown and not self.processes and bool(self.behind)

    @property
    def words(self) -> str:
        """The service in a line."""
        if self.unknown:
            return f"{self.service}: {self.unknown}"
        running = f"{self.processes} process{'es' * (self.processes != 1)}" if self.processes else "no process runs"
        waits = ", ".join(f"{count:,} on {topic}" for topic, count in self.behind.items())
        return f"{self.service}: {running}, {f'messages not finished: {waits}' if waits else 'nothing waits'}"

    @property
    def described(self) -> dict[str, object]:
        return {
            "service": self.service,
            "processes": None if self.unknown else self.processes,
            "behind": dict(self.behind),
            "unknown": self.unknown or None,
        }


def service_states(bus: KafkaBus) -> list[ServiceState]:
    """All five, in the order in which a bar meets them. Raises `BusUnavailable`."""
    examined = bus.examined()
    return [_state(service, examined, bus) for service in SERVICE_TOPICS]


def _state(service: str, examined: Examined, bus: Bus) -> ServiceState:
    try:
        members = examined.members(service)
    except BusUnavailable:
        raise
    except BusError as error:
        return ServiceState(service, 0, {}, str(error))
    behind = {}
    for topic in (one for name in SERVICE_TOPICS[service] for one in (name, retry_topic(name, service))):
        if not bus.partitions(topic):
            return ServiceState(service, 0, {}, f"there is no topic {topic}: tradeloop topics apply")
        begins = bus.begin_offsets(topic)
        waits = sum(
            end - max(members.committed.get(place, 0), begins[place]) for place, end in bus.end_offsets(topic).items()
        )
        if waits > 0:
            behind[topic] = waits
    return ServiceState(service, members.processes, behind)
