"""The port to registered policies, and the manifest that says what a policy is.

Adapters: `mlflow_models.MlflowModelStore`, `local_models.LocalModelStore`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel, ConfigDict
from tradeloop.common.errors import Unavailable


class ModelStoreUnavailable(Unavailable):
    """The store cannot be reached. Trying again is safe."""


class ModelNotFound(LookupError):
    """No such model, version or alias."""


class PolicyManifest(BaseModel):
    """What a policy needs to be fed and understood. Stored beside its ONNX graph."""

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
    onnx_max_abs_diff: float
    """Largest difference between the exported graph and the policy it came from, over sampled observations."""
    onnx_sha256: str


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


class ModelStore(Protocol):
    """Named, versioned policies with movable aliases."""

    def register(
        self, name: str, policy: Policy, *, metrics: Mapping[str, float], parameters: Mapping[str, str]
    ) -> RegisteredPolicy:
        """Store a policy as the next version of a model. Raises `ModelStoreUnavailable`."""
        ...

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias at a version. Raises `ModelNotFound`, `ModelStoreUnavailable`."""
        ...

    def load(self, name: str, reference: str) -> RegisteredPolicy:
        """A policy by version (digits) or alias.

        Raises `ModelNotFound`, `ModelStoreUnavailable`, and ValueError when the stored graph does not match its
        manifest's hash.
        """
        ...


def model_name(strategy: str, universe: str) -> str:
    """The registered name of the policies that a strategy trains on a universe."""
    return f"{strategy}-{universe}"
