"""What import-linter cannot say: that its hand-kept lists are whole, and which libraries the inner rings may use."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
CONTRACTS: dict[str, dict[str, Any]] = {contract["name"]: contract for contract in TOOLS["importlinter"]["contracts"]}
SOURCES = sorted(path for member in TOOLS["uv"]["workspace"]["members"] for path in ROOT.glob(f"{member}/src"))
SERVICES = {path.parent.name for path in ROOT.glob("services/*/src")}
STRATEGIES = {path.parent.name for path in ROOT.glob("strategies/*/src/*/__init__.py")}

INNER = {"numpy", "pydantic"}
RINGS = {
    "domain": INNER,
    "ports": INNER | {"structlog"},
    "contracts": INNER,
    "application": INNER | {"structlog"},
}
"""Third parties that each inner ring of a service may import. Adapters, main and config are free."""
COMMON = {
    "bar_store.sql": {"alembic", "psycopg", "sqlalchemy", "structlog"},
    "bus.kafka": {"confluent_kafka"},
    "feature_store.feast": {
        "feast",
        "pandas",
        "polars",
        "prometheus_client",
        "pyarrow",
        "redis",
        "sqlalchemy",
        "typeguard",
    },
    "features": {"talib"},
    "model_store.mlflow": {"mlflow"},
    "model_store.onnx_policy": {"onnxruntime"},
    "portfolio": {"yaml"},
    "runtime.health": {"prometheus_client", "structlog"},
    "runtime.logs": {"structlog"},
    "runtime.readback": {"structlog"},
    "runtime.runner": {"structlog"},
    "simulation": {"numba"},
    "sql": {"alembic", "sqlalchemy"},
}
"""Third parties of the modules of `tradeloop.common`, beyond `INNER`: each heavy library has its one home."""

PORTS = {
    "tradeloop.common.bar_store.port.BarStore": "tradeloop.common.testing.check_bar_store",
    "tradeloop.common.bus.port.Bus": "tradeloop.common.testing.check_bus",
    "tradeloop.common.feature_store.port.FeatureStore": "tradeloop.common.testing.check_feature_store",
    "tradeloop.common.model_store.port.ModelStore": "tradeloop.common.testing.check_model_store",
    "tradeloop.execution.ports.Ledger": "tradeloop.execution.contracts.check_ledger",
    "tradeloop.inference.ports.History": "tradeloop.inference.contracts.check_history",
    "tradeloop.ingest.ports.BarSource": "tradeloop.ingest.contracts.check_bar_source",
    "tradeloop.training.ports.Trainer": "tradeloop.training.contracts.check_trainer",
}
"""The contract of each port. A new port needs one, or its reason below."""
WITHOUT_CONTRACT = {
    "tradeloop.common.bus.port.Consumer": "It is made by a bus, and held by the contract of the bus.",
    "tradeloop.common.bus.port.Producer": "It is made by a bus, and held by the contract of the bus.",
    "tradeloop.common.bus.port.Reader": "It is made by a bus, and held by the contract of the bus.",
    "tradeloop.common.model_store.port.PolicySource": "It is the half of a model store that only reads.",
    "tradeloop.execution.ports.Venue": "It has the shape of the paper simulator, and is to be designed anew.",
    "tradeloop.ingest.ports.Published": "Its one adapter asks a bus for times that only a real server keeps.",
}
"""The protocols beside ports that have no contract, with the reason."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*TOOLS["importlinter"]["root_packages"], include_external_packages=True, cache_dir=None)


def modules_on_disk() -> set[str]:
    """Dotted names of all modules of the workspace."""
    files = ((source, file) for source in SOURCES for file in source.rglob("*.py"))
    return {".".join(file.relative_to(src).with_suffix("").parts).removesuffix(".__init__") for src, file in files}


def listed(contract: str) -> set[str]:
    """The modules that a layers contract names, optional ones included."""
    return {name for layer in CONTRACTS[contract]["layers"] for name in re.findall(r"\w+", layer)}


def third_parties(graph: grimp.ImportGraph, module: str) -> set[str]:
    """Top-level packages that a module imports itself, but for the standard library's and the workspace's."""
    imported = {name.split(".")[0] for name in graph.find_modules_directly_imported_by(module)}
    return imported - sys.stdlib_module_names - set(TOOLS["importlinter"]["root_packages"])


def test_every_module_is_seen_by_the_contracts(graph: grimp.ImportGraph) -> None:
    """A folder without `__init__.py` would be invisible; a `tradeloop/__init__.py` would end the namespace."""
    seen = {module for module in graph.modules if not graph.is_module_squashed(module)}
    assert modules_on_disk() == seen - {"tradeloop"}


def test_every_service_is_under_contract() -> None:
    assert listed("Services know the vocabulary and themselves; the command knows all") == SERVICES | {"cli", "common"}
    containers = CONTRACTS["Inside a service, imports point inward"]["containers"]
    assert set(containers) == {f"tradeloop.{service}" for service in SERVICES}


def test_every_strategy_is_under_contract() -> None:
    assert set(CONTRACTS["A strategy knows the plug-in interface alone"]["source_modules"]) == STRATEGIES
    assert set(TOOLS["importlinter"]["root_packages"]) == STRATEGIES | {"tradeloop"}


def test_every_source_folder_is_type_checked() -> None:
    assert [str(source.relative_to(ROOT)) for source in SOURCES] == TOOLS["mypy"]["mypy_path"]


def test_rooms_of_common_are_in_its_layers() -> None:
    on_disk = {name.split(".")[2] for name in modules_on_disk() if name.startswith("tradeloop.common.")}
    assert on_disk == listed("Inside the vocabulary, from the roof down")


def test_every_adapter_of_common_is_protected() -> None:
    """An adapter is what stands in a room beside a port, except what adapters share."""
    rooms = {name.removesuffix(".port") for name in modules_on_disk() if name.endswith(".port")}
    assert set(CONTRACTS["In a room with adapters, the port knows none"]["containers"]) == rooms
    beside = {f"{room}.{name.removeprefix(room).split('.')[1]}" for room in rooms for name in inside(room)}
    protected = [name for contract in CONTRACTS.values() for name in contract.get("protected_modules", [])]
    protected = [name for name in protected if name.startswith("tradeloop.common.")]
    shared = {"tradeloop.common.bar_store.rows"}
    assert sorted(protected) == sorted(beside - {f"{room}.port" for room in rooms} - shared)


def inside(room: str) -> set[str]:
    return {name for name in modules_on_disk() if name.startswith(f"{room}.")}


def test_every_port_has_a_contract() -> None:
    modules = [importlib.import_module(name) for name in modules_on_disk() if re.search(r"\.ports?$", name)]
    protocols = {
        f"{module.__name__}.{name}"
        for module in modules
        for name, found in vars(module).items()
        if getattr(found, "_is_protocol", False) and found.__module__ == module.__name__
    }
    assert PORTS.keys() | WITHOUT_CONTRACT.keys() == protocols
    assert not PORTS.keys() & WITHOUT_CONTRACT.keys()


@pytest.mark.parametrize("contract", PORTS.values())
def test_every_contract_is_a_function_and_its_checks_are_named_and_run(contract: str) -> None:
    module, _, function = contract.rpartition(".")
    name = f"{function.removeprefix('check_').upper()}_CHECKS"
    face = importlib.import_module(module)
    checks = getattr(face, name)
    assert callable(getattr(face, function))
    assert len({check.__name__ for check in checks}) == len(checks) > 0
    tests = "".join(path.read_text() for path in ROOT.glob("*/*/tests/test_*.py"))
    assert f'@pytest.mark.parametrize("check", {name}, ids=' in tests


def test_contracts_of_services_are_protected() -> None:
    contracts = {name for name in modules_on_disk() if re.fullmatch(r"tradeloop\.(?!common)\w+\.contracts", name)}
    assert contracts == set(CONTRACTS["No part of a service imports the contracts of its ports"]["protected_modules"])


@pytest.mark.parametrize("ring", RINGS)
def test_inner_rings_import_no_technology(graph: grimp.ImportGraph, ring: str) -> None:
    modules = {f"tradeloop.{service}.{ring}" for service in SERVICES} & graph.modules
    assert {module: extra for module in modules if (extra := third_parties(graph, module) - RINGS[ring])} == {}


def test_heavy_libraries_have_one_home(graph: grimp.ImportGraph) -> None:
    found: dict[str, set[str]] = {}
    for module in graph.find_descendants("tradeloop.common"):
        place = module.removeprefix("tradeloop.common.")
        homes = [libraries for home, libraries in COMMON.items() if place == home or place.startswith(f"{home}.")]
        if extra := third_parties(graph, module) - INNER.union(*homes):
            found[module] = extra
    assert found == {}
