"""The port to registered policies, and the manifest that says what a policy is.

Adapters: `mlflow.MlflowModelStore`, `memory.MemoryModelStore`. Both pass `tradeloop.common.testing.check_model_store`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from tradeloop.common.arrays import Float32s, Floats
from tradeloop.common.errors import Unavailable, UserError


class ModelStoreUnavailable(Unavailable):
    """The store cannot be reached. Trying again is safe."""


class ModelNotFound(UserError, LookupError):
    """No such model, version or alias."""


class ModelUnfit(UserError, ValueError):
    """A policy cannot decide here: it was trained for something else."""


class PolicyManifest(BaseModel):
    """Everything that is needed to feed and understand a policy. Stored beside its ONNX graph."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    strategy: str
    universe: str
    instruments: int
    """How many instruments the policy decides for."""
    feature_set: str
    feature_names: tuple[str, ...]
    window: int
    observation_size: int
    action_scheme: str
    action_size: int
    reward_id: str
    algorithm: str
    seed: int
    steps: int
    trained_from: str
    trained_to: str
    """Range of bar closes that the policy and its scaler were fitted on, ISO 8601."""
    selected_to: str = ""
    """The last bar close, ISO 8601, that had a part in choosing this policy among its checkpoints; empty where none
    after `trained_to` had. Only bars after both are out of sample."""
    onnx_max_abs_diff: float
    """Largest difference between the exported graph and the policy it came from, over sampled observations."""
    onnx_sha256: str
    timeframe: str = ""
    """Timeframe of the bars; empty in a manifest from before this was written down, as are the next."""
    instrument_ids: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    """More universes that it learnt from."""
    feature_means: tuple[float, ...] = ()
    feature_deviations: tuple[float, ...] = ()
    """The mean and the standard deviation of each feature on the bars that it learnt from, all instruments together;
    empty where they were not written down."""

    @property
    def known_to(self) -> datetime | None:
        """The last bar close that the policy was fitted or chosen on: all bars after it are new to it. None where the
        manifest says none."""
        try:
            return datetime.fromisoformat(self.selected_to or self.trained_to)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Policy:
    """An exported policy: ONNX graph `observation (1, n) float32 -> action (1, m) float32`, scaler included."""

    manifest: PolicyManifest
    onnx: bytes

    @property
    def model_id(self) -> str:
        """SHA-256 of the graph."""
        return hashlib.sha256(self.onnx).hexdigest()


@dataclass(frozen=True, slots=True)
class RegisteredPolicy:
    """A policy as the registry knows it."""

    name: str
    version: str
    policy: Policy

    @property
    def model_id(self) -> str:
        """SHA-256 of the graph. A registry that was made anew counts versions from 1 again: compare this too."""
        return self.policy.model_id


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version as the registry lists it, without its graph."""

    name: str
    version: str
    aliases: tuple[str, ...]
    metrics: Mapping[str, float]
    parameters: Mapping[str, str]
    """The metrics and parameters that it was registered with."""


class Actor(Protocol):
    """A policy that answers. Adapter: `onnx_policy.OnnxPolicy`."""

    def act(self, observation: Float32s) -> Floats:
        """The action (1, m) for an observation (1, n)."""
        ...


class PolicySource(Protocol):
    """Where policies are loaded from. Raises `ModelStoreUnavailable`."""

    def load(self, name: str, reference: str) -> RegisteredPolicy:
        """A policy by version (digits) or alias.

        Raises `ModelNotFound`, and ValueError when what is stored is damaged: no manifest can be read, or the graph
        does not match its hash.
        """
        ...


class ModelStore(PolicySource, Protocol):
    """Named, versioned policies with movable aliases. Every method raises `ModelStoreUnavailable`."""

    def register(
        self,
        name: str,
        policy: Policy,
        *,
        metrics: Mapping[str, float],
        parameters: Mapping[str, str],
        curve: Sequence[tuple[int, Mapping[str, float]]] = (),
    ) -> RegisteredPolicy:
        """Store a policy as the next version of a model: \"1\", \"2\" and so on.

        `metrics` are of the policy; `curve` has those of its training by step.

        Raises ValueError when the graph does not match its manifest's hash, or the name is none a store can take.
        """
        ...

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias at a version, away from any other.

        Raises `ModelNotFound`, and ValueError for an alias that none can be: empty, or digits alone, as a version is.
        """
        ...

    def versions(self) -> Sequence[ModelVersion]:
        """Every registered version: by the model's name, the oldest first."""
        ...

    def check(self) -> None:
        """Whether it can be reached: raises `ModelStoreUnavailable` when not."""
        ...


def write_policy(folder: Path, policy: Policy) -> None:
    """Write `policy.onnx` and `manifest.json` into a folder, which is made. Raises ValueError on a wrong hash."""
    check_graph(policy, "the policy")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policy.onnx").write_bytes(policy.onnx)
    (folder / "manifest.json").write_text(policy.manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_policy(folder: Path) -> Policy:
    """A policy that `write_policy` wrote. Raises `ModelNotFound` without its files, ValueError for damaged ones."""
    try:
        onnx = (folder / "policy.onnx").read_bytes()
        manifest = (folder / "manifest.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFound(f"no policy in {folder}: policy.onnx and manifest.json are expected there") from None
    policy = Policy(PolicyManifest.model_validate_json(manifest), onnx)
    check_graph(policy, f"the policy in {folder}")
    return policy


def check_graph(policy: Policy, what: str) -> None:
    """Raise ValueError unless the graph of a policy is the one that its manifest describes."""
    if policy.model_id != policy.manifest.onnx_sha256:
        raise ValueError(
            f"{what} is damaged: its graph has the SHA-256 {policy.model_id}, its manifest says "
            f"{policy.manifest.onnx_sha256}; register it again from a good copy"
        )


def check_alias(alias: str) -> None:
    """Raise ValueError for an alias that could not be told from a version."""
    if not alias or alias.isdecimal():
        raise ValueError(f"{alias!r} is no alias: use letters, digits, - and _, and not digits alone")


def model_name(strategy: str, universe: str) -> str:
    """The registered name of the policies that a strategy trains on a universe: each pair has its own."""
    return f"{strategy}.{universe}"


def former_name(name: str) -> str:
    """The name that the same pair had before. Others had it too: a-b with c, and a with b-c."""
    return name.replace(".", "-")
