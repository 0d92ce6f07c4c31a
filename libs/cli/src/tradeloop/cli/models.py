"""Registered models: where a command finds them, and which of them a reference means."""

from __future__ import annotations

from pathlib import Path

from tradeloop.cli.client.settings import load_settings
from tradeloop.cli.naming import listed
from tradeloop.common.addresses import address
from tradeloop.common.errors import UserError
from tradeloop.common.messages.training import CANDIDATE, CHAMPION
from tradeloop.common.model_store.port import (
    ModelNotFound,
    ModelStore,
    ModelVersion,
    RegisteredPolicy,
    model_name,
    read_policy,
)


def store_of(home: Path) -> ModelStore:
    """The models of a home. Raises `UserError` where there are none."""
    return _mlflow(f"sqlite:///{database_of(home)}")


def database_of(home: Path) -> Path:
    """The database of MLflow in a home. Raises `UserError` where there is none."""
    database = home / "mlflow.db"
    if not database.exists():
        raise UserError(f"{home} has no models: run `tradeloop train` first, or name another --home")
    return database


def running_store() -> tuple[ModelStore, str]:
    """The models of the running stack, and where they are. Raises `UserError` where the settings do not say."""
    settings = load_settings()
    if "mlflow_tracking_uri" not in settings.model_fields_set:
        raise UserError("say where the running stack's models are: set TRADELOOP_MLFLOW_TRACKING_URI")
    uri = settings.mlflow_tracking_uri.get_secret_value()
    return _mlflow(uri), address(uri)


def find(reference: str, home: Path, default: str) -> RegisteredPolicy:
    """The model that `--model` means: a folder, NAME:VERSION, an alias or version of `default`, or NAME.

    A version may also be an alias; NAME alone is the newest, its candidate. Raises `UserError`.
    """
    folder = Path(reference)
    if folder.is_dir():
        try:
            policy = read_policy(folder)
        except (ModelNotFound, ValueError) as error:
            raise UserError(f"{error}; name another folder with --model, or run `tradeloop train`") from error
        manifest = policy.manifest
        return RegisteredPolicy(model_name(manifest.strategy, manifest.universe), "", policy)
    return find_in(store_of(home), str(home), reference, default)


def find_in(store: ModelStore, place: str, reference: str, default: str | None) -> RegisteredPolicy:
    """The same in a store; without a default a version or an alias alone means nothing."""
    name, colon, version = reference.rpartition(":")
    tries = [(name, version)] if colon else [(reference, CANDIDATE)]
    if default is not None and not colon:
        tries.insert(0, (default, reference))
    for model, which in tries:
        try:
            return store.load(model, which)
        except ModelNotFound:
            continue
        except ValueError as error:
            raise UserError(f"{model}:{which} cannot be loaded: {error}") from error
    known = [f"{one.name}:{one.version}" + "".join(f" ({alias})" for alias in one.aliases) for one in store.versions()]
    meant = ", nor ".join(f"{model}:{which}" for model, which in tries)
    meant += f", and {reference} is no folder" if "/" in reference else ""
    raise UserError(
        f"{place} has no model {meant}; it has {listed(reversed(known)) or 'none'}: choose one by NAME:VERSION, or run "
        "`tradeloop train`"
    )


def listed_as(registered: RegisteredPolicy, home: Path) -> ModelVersion | None:
    """A model as its home lists it; None for one from a folder."""
    versions = store_of(home).versions() if registered.version else ()
    return next((one for one in versions if (one.name, one.version) == (registered.name, registered.version)), None)


def standing(listed: ModelVersion) -> dict[str, str]:
    """The alias that a model has now, empty where it has neither, and the reason that was given when it was trained."""
    alias = next((alias for alias in (CHAMPION, CANDIDATE) if alias in listed.aliases), "")
    return {"alias": alias, "reason": listed.parameters.get("reason", "")}


def _mlflow(uri: str) -> ModelStore:
    from tradeloop.common.model_store.mlflow import MlflowModelStore

    return MlflowModelStore(uri)
