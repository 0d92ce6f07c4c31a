"""The contract of the model store: `check_model_store`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tradeloop.common.contracts.steps import fresh, kept, refused
from tradeloop.common.model_store.port import ModelNotFound, ModelStore, Policy, PolicyManifest

MakeModelStore = Callable[[], ModelStore]
"""Opens the same storage at every call, as another process does; one that lives in an object gives that object."""

_METRICS = {"sharpe": 1.25, "drawdown": 0.1}
_PARAMETERS = {"learning_rate": "0.0003"}


def check_model_store(make_store: MakeModelStore) -> None:
    """Run all of `MODEL_STORE_CHECKS`, on one storage: models get new names at every run."""
    for check in MODEL_STORE_CHECKS:
        check(make_store)


def sample_policy(onnx: bytes = b"a graph", **changes: object) -> Policy:
    """A policy with a manifest that fits its graph, which is any bytes. `changes` replace fields of the manifest."""
    values: dict[str, object] = {
        "strategy": "example",
        "universe": "crypto",
        "instruments": 2,
        "feature_set": "fs-1",
        "feature_names": ("log_return(1)", "rsi(14)"),
        "window": 2,
        "observation_size": 4,
        "action_scheme": "target_position",
        "action_size": 2,
        "reward_id": "reward-1",
        "algorithm": "PPO",
        "seed": 7,
        "steps": 1000,
        "trained_from": "2025-01-01T00:00:00+00:00",
        "trained_to": "2025-06-01T00:00:00+00:00",
        "onnx_max_abs_diff": 1.2345678901234567e-07,
        "onnx_sha256": hashlib.sha256(onnx).hexdigest(),
    }
    return Policy(PolicyManifest.model_validate(values | changes), onnx)


def a_policy_comes_back_to_the_byte(make_store: MakeModelStore) -> None:
    store, name, onnx = make_store(), fresh("model"), bytes(range(256)) * 100
    policy = sample_policy(onnx, seed=8)
    registered = store.register(name, policy, metrics=_METRICS, parameters=_PARAMETERS)
    assert (registered.name, registered.version) == (name, "1"), "the first version of a model is not its version 1"
    loaded = store.load(name, "1")
    assert loaded == registered, "what is loaded is not what was registered"
    assert loaded.policy == policy, "a policy changed in the store"
    assert loaded.policy.model_id == hashlib.sha256(onnx).hexdigest(), "a graph changed in the store"


def versions_count_up_by_model(make_store: MakeModelStore) -> None:
    store, one, other = make_store(), fresh("model"), fresh("model")
    versions = [_register(store, one, b"1"), _register(store, one, b"2"), _register(store, other, b"3")]
    assert versions == ["1", "2", "1"], f"versions count {', '.join(versions)}, and not from 1 by model"
    loaded = [store.load(*place).policy.onnx for place in ((one, "1"), (one, "2"), (other, "1"))]
    assert loaded == [b"1", b"2", b"3"], "a version is another policy than the one registered as it"


def versions_are_listed(make_store: MakeModelStore) -> None:
    store, name = make_store(), fresh("model")
    for onnx in (b"1", b"2"):
        _register(store, name, onnx)
    store.set_alias(name, "champion", "2")
    listed = [one for one in store.versions() if one.name == name]
    assert [(one.version, one.aliases) for one in listed] == [("1", ()), ("2", ("champion",))], (
        "a version is not listed"
    )
    assert {**_METRICS}.items() <= listed[0].metrics.items(), "a listed version has other metrics than its own"
    assert {**_PARAMETERS}.items() <= listed[0].parameters.items(), "a listed version has other parameters"


def an_alias_moves(make_store: MakeModelStore) -> None:
    store, name = make_store(), fresh("model")
    for onnx in (b"1", b"2"):
        _register(store, name, onnx)
    store.set_alias(name, "champion", "2")
    store.set_alias(name, "challenger", "2")
    assert store.load(name, "champion").version == "2", "an alias does not lead to its version"
    store.set_alias(name, "champion", "1")
    champion, challenger = store.load(name, "champion"), store.load(name, "challenger")
    assert (champion.version, champion.policy.onnx) == ("1", b"1"), "an alias that was moved stayed where it was"
    assert (challenger.version, challenger.policy.onnx) == ("2", b"2"), "an alias moved with another"


def aliases_belong_to_their_model(make_store: MakeModelStore) -> None:
    store, one, other = make_store(), fresh("model"), fresh("model")
    _register(store, one)
    _register(store, other)
    store.set_alias(one, "champion", "1")
    refused(ModelNotFound, lambda: store.load(other, "champion"), "an alias of another model", "champion")


def what_is_not_there_is_named(make_store: MakeModelStore) -> None:
    store, name, missing = make_store(), fresh("model"), fresh("missing")
    refused(ModelNotFound, lambda: store.load(missing, "1"), "a version of no model", missing)
    refused(ModelNotFound, lambda: store.load(missing, "champion"), "an alias of no model", missing)
    refused(ModelNotFound, lambda: store.set_alias(missing, "champion", "1"), "an alias for no model", missing)
    _register(store, name)
    refused(ModelNotFound, lambda: store.load(name, "2"), "a version that is not there", f"{name}.*2")
    no_alias = f"{name} has no alias champion"
    refused(ModelNotFound, lambda: store.load(name, "champion"), "an alias that is not there", no_alias)
    for version in ("2", "x"):
        set_alias = partial(store.set_alias, name, "champion", version)
        refused(ModelNotFound, set_alias, "an alias for a version that is not there", f"{name}.*{version}")
    refused(ModelNotFound, lambda: store.load(name, "champion"), "an alias that was refused", no_alias)


def names_that_lead_elsewhere_are_refused(make_store: MakeModelStore) -> None:
    store = make_store()
    for wrong in ("", "..", "a/b", "/etc"):
        refused(ValueError, partial(_register, store, wrong), f"the name {wrong!r} of a model")


def an_alias_can_be_told_from_a_version(make_store: MakeModelStore) -> None:
    store, name = make_store(), fresh("model")
    _register(store, name)
    for wrong in ("", "1", "42"):
        refused(ValueError, partial(store.set_alias, name, wrong, "1"), f"the alias {wrong!r}")


def a_graph_that_is_not_its_manifests_is_refused(make_store: MakeModelStore) -> None:
    store, name = make_store(), fresh("model")
    wrong = sample_policy(onnx_sha256="0" * 64)
    refused(
        ValueError,
        lambda: store.register(name, wrong, metrics=_METRICS, parameters=_PARAMETERS),
        "a graph that its manifest does not describe",
        "damaged",
    )
    refused(ModelNotFound, lambda: store.load(name, "1"), "a version that was refused")


def another_opening_finds_everything(make_store: MakeModelStore) -> None:
    first, name = make_store(), fresh("model")
    _register(first, name)
    first.set_alias(name, "champion", "1")
    second = make_store()
    second.check()
    found = kept(lambda: second.load(name, "champion"), "what was registered by another opening")
    assert found.policy == sample_policy(), "another opening finds another policy"
    assert _register(second, name, b"2") == "2", "another opening does not count on"
    second.set_alias(name, "champion", "2")
    assert first.load(name, "champion").policy.onnx == b"2", "an alias that moved elsewhere stayed where it was"


def many_parameters_and_odd_metrics_are_taken(make_store: MakeModelStore) -> None:
    parameters = {f"p{i}": str(i) for i in range(250)}
    metrics = {"nan": float("nan"), "inf": float("inf")}
    made = make_store().register(fresh("model"), sample_policy(), metrics=metrics, parameters=parameters)
    assert made.version == "1", "the first version of a model is not its version 1"


def registering_at_once_loses_nothing(make_store: MakeModelStore) -> None:
    stores, name = [make_store() for _ in range(4)], fresh("model")
    with ThreadPoolExecutor(len(stores)) as pool:
        versions = list(pool.map(lambda n: _register(stores[n % 4], name, bytes([n])), range(12)))
    assert sorted(map(int, versions)) == list(range(1, 13)), "two that registered at once got one version"
    found = [stores[0].load(name, version).policy.onnx for version in versions]
    assert found == [bytes([n]) for n in range(12)], "a version is another policy than the one registered as it"


MODEL_STORE_CHECKS: Sequence[Callable[[MakeModelStore], None]] = (
    a_policy_comes_back_to_the_byte,
    versions_count_up_by_model,
    versions_are_listed,
    an_alias_moves,
    aliases_belong_to_their_model,
    what_is_not_there_is_named,
    names_that_lead_elsewhere_are_refused,
    an_alias_can_be_told_from_a_version,
    a_graph_that_is_not_its_manifests_is_refused,
    another_opening_finds_everything,
    many_parameters_and_odd_metrics_are_taken,
    registering_at_once_loses_nothing,
)
"""The contract of a model store, promise by promise: for test runners that want to name each one."""


def _register(store: ModelStore, name: str, onnx: bytes = b"a graph") -> str:
    return store.register(name, sample_policy(onnx), metrics=_METRICS, parameters=_PARAMETERS).version
