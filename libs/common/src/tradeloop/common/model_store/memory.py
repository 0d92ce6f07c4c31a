"""`MemoryModelStore`: registered policies in this process, for tests."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tradeloop.common.model_store.port import (
    ModelNotFound,
    ModelVersion,
    Policy,
    RegisteredPolicy,
    check_alias,
    check_graph,
)

_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


@dataclass(frozen=True, slots=True)
class Run:
    """The figures, parameters and learning curve that were registered with a version."""

    metrics: Mapping[str, float]
    parameters: Mapping[str, str]
    curve: Sequence[tuple[int, Mapping[str, float]]]


class MemoryModelStore:
    """Policies in dictionaries, safe between threads. `runs` are by model and version."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str], Run] = {}
        self._lock = threading.Lock()
        self._policies: dict[str, list[Policy]] = {}
        self._aliases: dict[tuple[str, str], str] = {}

    def register(
        self,
        name: str,
        policy: Policy,
        *,
        metrics: Mapping[str, float],
        parameters: Mapping[str, str],
        curve: Sequence[tuple[int, Mapping[str, float]]] = (),
    ) -> RegisteredPolicy:
        if not _SAFE.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a model: use letters, digits, - _ and .")
        check_graph(policy, "the policy")
        with self._lock:
            policies = self._policies.setdefault(name, [])
            policies.append(policy)
            version = str(len(policies))
            self.runs[name, version] = Run(dict(metrics), dict(parameters), tuple(curve))
        return RegisteredPolicy(name, version, policy)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        check_alias(alias)
        self._policy(name, version)
        self._aliases[name, alias] = version

    def load(self, name: str, reference: str) -> RegisteredPolicy:
        version = reference
        if not reference.isdecimal():
            try:
                version = self._aliases[name, reference]
            except KeyError:
                raise ModelNotFound(f"model {name} has no alias {reference}") from None
        return RegisteredPolicy(name, version, self._policy(name, version))

    def versions(self) -> Sequence[ModelVersion]:
        with self._lock:
            runs, aliases = dict(self.runs), dict(self._aliases)
        return [
            ModelVersion(
                name,
                version,
                tuple(sorted(alias for (model, alias), of in aliases.items() if (model, of) == (name, version))),
                run.metrics,
                run.parameters,
            )
            for (name, version), run in sorted(runs.items(), key=lambda one: (one[0][0], int(one[0][1])))
        ]

    def check(self) -> None:
        """It is always there."""

    def _policy(self, name: str, version: str) -> Policy:
        policies = self._policies.get(name, [])
        if not (version.isdecimal() and 0 < int(version) <= len(policies)):
            raise ModelNotFound(f"model {name} has no version {version}")
        return policies[int(version) - 1]
