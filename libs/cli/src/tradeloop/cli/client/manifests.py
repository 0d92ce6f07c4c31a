"""The manifests of services: which version of each runs, whether they differ, and who starts often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tradeloop.common.bus.port import Bus
from tradeloop.common.messages import ServiceStarted
from tradeloop.common.messages.topics import SERVICE_TOPICS, topic_of
from tradeloop.common.runtime.readback import all_records, of_kind

_OFTEN_WITHIN = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Runs:
    """The newest starts of a service, one for each process that is there now; its last one where none is."""

    processes: int
    newest: Sequence[ServiceStarted]
    """The newest first."""
    lately: int
    """How often it started within the last hour."""

    @property
    def words(self) -> str:
        """The newest of them in a line; empty where none is on record."""
        if not self.newest:
            return ""
        told = self.newest[0]
        verb = "runs" if self.processes else "last ran"
        return (
            f"{verb} {told.version}, commit {told.commit}, settings {told.settings}, manifest {told.manifest}, "
            f"since {told.started:%Y-%m-%d %H:%M} UTC"
        )

    @property
    def described(self) -> dict[str, object]:
        return {
            "runs": [
                each.model_dump(
                    mode="json",
                    include={"manifest", "version", "commit", "packages", "settings", "started", "instance", "parts"},
                )
                for each in self.newest
            ],
            "starts_last_hour": self.lately,
        }


def runs_of(bus: Bus, processes: Mapping[str, int], now: datetime) -> dict[str, Runs]:
    """The newest starts of each service, by the number of its processes. Raises `BusUnavailable`."""
    starts: dict[str, dict[str, ServiceStarted]] = {service: {} for service in SERVICE_TOPICS}
    for one in of_kind(all_records(bus, topic_of(ServiceStarted).name), ServiceStarted):
        starts.setdefault(one.service, {})[one.identity] = one  # which may come twice
    found = {}
    for service, known in starts.items():
        ordered = sorted(known.values(), key=lambda one: one.started, reverse=True)
        lately = sum(now - one.started < _OFTEN_WITHIN for one in ordered)
        count = processes.get(service, 0)
        found[service] = Runs(count, ordered[: max(count, 1)], lately)
    return found


def warnings_of(runs: Mapping[str, Runs]) -> list[str]:
    """Lines about what is worth a look: processes or services that differ in what runs, and such as start often."""
    found, sources = [], {}
    for service, told in runs.items():
        manifests = {one.manifest for one in told.newest}
        if len(manifests) > 1:
            found.append(
                f"the processes of {service} differ in what they run (manifests {', '.join(sorted(manifests))}): wait "
                "for the upgrade to end, or start those anew that were left out"
            )
        if told.lately > max(told.processes, 1):
            found.append(
                f"{service} started {told.lately} times within the last hour, for {told.processes} "
                f"process{'es' * (told.processes != 1)} now: its log says why"
            )
        if told.processes and told.newest:
            sources[service] = f"{told.newest[0].version}, commit {told.newest[0].commit}"
    if len(set(sources.values())) > 1:
        each = "; ".join(f"{service} {source}" for service, source in sources.items())
        found.append(f"services run different sources: {each}: deploy one release of all")
    return found
