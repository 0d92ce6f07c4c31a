"""What import-linter cannot say: that its lists are whole, which libraries are used where, and who writes what."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import grimp
import pytest

from tradeloop.common import messages
from tradeloop.common.messages.topics import CATALOGUE

ROOT = Path(__file__).resolve().parents[1]
TOOLS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
CONTRACTS: dict[str, dict[str, Any]] = {contract["name"]: contract for contract in TOOLS["importlinter"]["contracts"]}
SOURCES = sorted(path for member in TOOLS["uv"]["workspace"]["members"] for path in ROOT.glob(f"{member}/src"))
SERVICES = {path.parent.name for path in ROOT.glob("services/*/src")}
STRATEGIES = {path.parent.name for path in ROOT.glob("strategies/*/src/*/__init__.py")}

LINES = 400
"""The most lines of a Python file outside tests: a longer one holds two concepts, and becomes a folder."""

INNER = {"numpy", "pydantic"}
RINGS = {
    "domain": INNER,
    "ports": INNER,
    "contracts": INNER | {"aiohttp", "msgpack"},
    "application": INNER | {"structlog"},
}
"""Third parties that each inner ring of a service may import itself. Adapters, main and config are free.

aiohttp is the server of the fake venue, which is among the contracts of ingest.
"""
LOADED = {
    "execution.domain": INNER | {"exchange_calendars", "numba", "talib", "yaml"},
    "execution.ports": INNER | {"exchange_calendars", "numba", "talib", "yaml"},
    "execution.contracts": INNER | {"exchange_calendars", "numba", "talib", "yaml"},
    "execution.application": INNER | {"exchange_calendars", "numba", "structlog", "talib", "yaml"},
    "inference.domain": INNER | {"exchange_calendars", "talib", "yaml"},
    "inference.ports": INNER | {"exchange_calendars", "talib"},
    "inference.contracts": INNER | {"exchange_calendars", "talib"},
    "inference.application": INNER | {"exchange_calendars", "structlog", "talib", "yaml"},
    "ingest.domain": INNER,
    "ingest.ports": INNER,
    "ingest.contracts": INNER | {"aiohttp", "msgpack"},
    "ingest.application": INNER | {"exchange_calendars", "structlog"},
    "preprocess.ports": INNER,
    "preprocess.application": INNER | {"exchange_calendars", "structlog", "talib"},
    "training.domain": INNER | {"exchange_calendars", "numba", "talib", "yaml"},
    "training.ports": INNER | {"exchange_calendars", "talib", "yaml"},
    "training.contracts": INNER | {"exchange_calendars", "talib", "yaml"},
    "training.application": INNER | {"exchange_calendars", "numba", "structlog", "talib", "yaml"},
}
"""Third parties that each inner ring loads in the end, through what it imports of `tradeloop.common`.

A new one here is a decision: it has to be installed wherever the ring is to run, its tests included.
"""
COMMON: dict[str, set[str]] = {
    "bar_store.sql": {"alembic", "psycopg", "sqlalchemy", "structlog"},
    "bus.kafka": {"confluent_kafka"},
    "event_store.sql": {"alembic", "psycopg", "sqlalchemy"},
    "feature_store.feast": {
        "feast",
        "pandas",
        "polars",
        "prometheus_client",
        "pyarrow",
        "redis",
        "sqlalchemy",
        "typeguard",
        "yaml",
    },
    "features": {"talib"},
    "market.calendars": {"exchange_calendars"},
    "model_store.mlflow": {"mlflow"},
    "model_store.onnx_policy": {"onnxruntime"},
    "portfolio": {"yaml"},
    "settings": {"pydantic_settings"},
    "runtime": {"structlog"},
    "runtime.exposition": {"prometheus_client"},
    "runtime.health": {"prometheus_client"},
    "runtime.otlp": {"opentelemetry"},
    "simulation": {"numba"},
    "sql": {"alembic", "sqlalchemy"},
}
"""Third parties of the modules of `tradeloop.common`, beyond `INNER`: each heavy library has its one home."""

PORTS = {
    "tradeloop.common.bar_store.port.BarStore": "tradeloop.common.testing.check_bar_store",
    "tradeloop.common.bus.port.Bus": "tradeloop.common.testing.check_bus",
    "tradeloop.common.event_store.port.EventStore": "tradeloop.common.testing.check_event_store",
    "tradeloop.common.feature_store.port.FeatureStore": "tradeloop.common.testing.check_feature_store",
    "tradeloop.common.model_store.port.ModelStore": "tradeloop.common.testing.check_model_store",
    "tradeloop.execution.ports.Ledger": "tradeloop.execution.contracts.check_ledger",
    "tradeloop.inference.ports.History": "tradeloop.inference.contracts.check_history",
    "tradeloop.ingest.ports.BarSource": "tradeloop.ingest.contracts.check_bar_source",
    "tradeloop.ingest.ports.BatchSource": "tradeloop.ingest.contracts.check_market_source",
    "tradeloop.ingest.ports.Fetched": "tradeloop.ingest.contracts.check_fetched",
    "tradeloop.ingest.ports.MarketSource": "tradeloop.ingest.contracts.check_market_source",
    "tradeloop.training.ports.Trainer": "tradeloop.training.contracts.check_trainer",
}
"""The contract of each port. A new port needs one, or its reason below."""
WITHOUT_CONTRACT = {
    "tradeloop.common.bus.port.Consumer": "It is made by a bus, and held by the contract of the bus.",
    "tradeloop.common.bus.port.Producer": "It is made by a bus, and held by the contract of the bus.",
    "tradeloop.common.bus.port.Reader": "It is made by a bus, and held by the contract of the bus.",
    "tradeloop.common.model_store.port.PolicySource": "It is the half of a model store that only reads.",
    "tradeloop.execution.ports.History": "Its one adapter reads topics back.",
    "tradeloop.execution.ports.Venue": "It has the shape of the paper simulator, and is to be designed anew.",
    "tradeloop.ingest.ports.MarketStream": "It is made by a source, and held by the contract of the source.",
    "tradeloop.ingest.ports.Published": "Its one adapter asks a bus for times that only a real server keeps.",
    "tradeloop.ingest.ports.Marks": "It is made by what was published, and its one adapter follows a topic.",
    "tradeloop.preprocess.ports.Sent": "Its one adapter reads a topic back.",
    "tradeloop.common.model_store.port.Actor": "It is one method; the trainer's contract holds its graphs to it.",
}
"""The protocols beside ports that have no contract, with the reason."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    roots = TOOLS["importlinter"]["root_packages"]
    return grimp.build_graph(*roots, include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None)


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


def long_files(root: Path) -> dict[str, int]:
    """The Python files outside tests that have more than `LINES` lines, and how many they have."""
    folders = [folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    files = [*root.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))]
    counts = {file: file.read_text().count("\n") for file in files if "tests" not in file.relative_to(root).parts}
    return {str(file.relative_to(root)): count for file, count in counts.items() if count > LINES}


def test_files_are_short() -> None:
    assert long_files(ROOT) == {}


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


def modules_of(graph: grimp.ImportGraph, package: str) -> set[str]:
    """A module, and everything in it if it is a folder; nothing if it does not exist."""
    return {module for module in graph.modules if module == package or module.startswith(f"{package}.")}


@pytest.mark.parametrize("ring", RINGS)
def test_inner_rings_import_no_technology(graph: grimp.ImportGraph, ring: str) -> None:
    modules = {module for service in SERVICES for module in modules_of(graph, f"tradeloop.{service}.{ring}")}
    assert {module: extra for module in modules if (extra := third_parties(graph, module) - RINGS[ring])} == {}


def test_heavy_libraries_have_one_home(graph: grimp.ImportGraph) -> None:
    found: dict[str, set[str]] = {}
    for module in graph.find_descendants("tradeloop.common"):
        place = module.removeprefix("tradeloop.common.")
        homes = [libraries for home, libraries in COMMON.items() if place == home or place.startswith(f"{home}.")]
        if extra := third_parties(graph, module) - INNER.union(*homes):
            found[module] = extra
    assert found == {}


def loaded(graph: grimp.ImportGraph, modules: Iterable[str]) -> set[str]:
    """Third parties that are loaded when the modules are imported and everything in them has run.

    A module's packages are imported before it, and what a function imports counts.
    """
    ours = set(TOOLS["importlinter"]["root_packages"])
    seen: set[str] = set()
    to_see = list(modules)
    while to_see:
        module = to_see.pop()
        if module not in seen:
            seen.add(module)
            if module.split(".")[0] in ours:
                package = module.rpartition(".")[0]
                to_see += [package] if package in graph.modules else []
                to_see += graph.find_modules_directly_imported_by(module)
    return {module.split(".")[0] for module in seen} - sys.stdlib_module_names - ours


def test_what_the_inner_rings_load_is_signed(graph: grimp.ImportGraph) -> None:
    rings = {
        f"{service}.{ring}": modules_of(graph, f"tradeloop.{service}.{ring}") for service in SERVICES for ring in RINGS
    }
    assert {ring: loaded(graph, modules) for ring, modules in rings.items() if modules} == LOADED


def members() -> dict[str, dict[str, Any]]:
    """The project table of each package of the workspace, by the package's name."""
    files = (file for member in TOOLS["uv"]["workspace"]["members"] for file in ROOT.glob(f"{member}/pyproject.toml"))
    projects = (tomllib.loads(file.read_text())["project"] for file in files)
    return {project["name"]: project for project in projects}


def parts(requirement: str) -> tuple[str, list[str]]:
    """A requirement's name, as package indexes spell it, and its extras."""
    name, extras = re.match(r"([\w.-]+)(?:\[(.*?)\])?", requirement).groups()  # type: ignore[union-attr]
    return re.sub(r"[-_.]+", "-", name).lower(), re.findall(r"[\w-]+", extras or "")


def declared(projects: Mapping[str, dict[str, Any]], requirements: Iterable[str]) -> set[str]:
    """The third parties that requirements name, those of the workspace's own packages and of their extras included."""
    found: set[str] = set()
    for name, extras in map(parts, requirements):
        if name in projects:
            optional = projects[name].get("optional-dependencies", {})
            wanted = [*projects[name]["dependencies"], *(one for extra in extras for one in optional[extra])]
            found |= declared(projects, wanted)
        else:
            found.add(name)
    return found


@functools.cache
def owners() -> Mapping[str, set[str]]:
    """The installed distributions that each top-level module belongs to."""
    return {module: {parts(name)[0] for name in names} for module, names in packages_distributions().items()}


def undeclared(modules: Iterable[str], requirements: set[str]) -> set[str]:
    """The modules of third parties that none of the requirements brings."""
    return {module for module in modules if not owners()[module] & requirements}


@pytest.mark.parametrize("package", ["common", "cli", *sorted(SERVICES), *sorted(STRATEGIES)])
def test_what_a_package_loads_is_declared(graph: grimp.ImportGraph, package: str) -> None:
    """A service may not live on what another package of its image happens to bring."""
    projects = members()
    if package in STRATEGIES:
        source, name = package, f"tradeloop-{package.replace('_', '-')}"
    else:
        source, name = f"tradeloop.{package}", f"tradeloop-{package}"
    extras = projects[name].get("optional-dependencies", {})
    requirements = [*projects[name]["dependencies"], *(one for wanted in extras.values() for one in wanted)]
    assert undeclared(loaded(graph, modules_of(graph, source)), declared(projects, requirements)) == set()


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_every_extra_of_a_service_is_used(graph: grimp.ImportGraph, service: str) -> None:
    projects = members()
    optional = projects["tradeloop-common"]["optional-dependencies"]
    modules = loaded(graph, modules_of(graph, f"tradeloop.{service}"))
    used = set().union(*(owners()[module] for module in modules))
    asked = dict(map(parts, projects[f"tradeloop-{service}"]["dependencies"]))["tradeloop-common"]
    assert [extra for extra in asked if not {parts(one)[0] for one in optional[extra]} & used] == []


MESSAGES = {name for name, kind in vars(messages).items() if isinstance(kind, type)} & {
    topic.message.__name__ for topic in CATALOGUE.values()
}


def made_in(source: str) -> set[str]:
    """The message types that a module makes anew: `SignalGenerated(...)`, or `FeaturesComputed.of(...)`.

    What is read from the wire comes through `model_validate_json` and does not count.
    """
    tree = ast.parse(source)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {
        alias.asname or alias.name: alias.name
        for node in imports
        if (node.module or "").startswith("tradeloop.common.messages")
        for alias in node.names
        if alias.name in MESSAGES
    }
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    makers = [call.value if isinstance(call, ast.Attribute) and call.attr == "of" else call for call in calls]
    return {names[maker.id] for maker in makers if isinstance(maker, ast.Name) and maker.id in names}


def sources(package: str) -> list[Path]:
    """Where a package makes what it publishes: the inner rings of a service, all of the command but its report.

    Adapters only translate, and may make messages anew when they read topics back; a report publishes nothing.
    """
    if package == "cli":
        report = ROOT / "libs/cli/src/tradeloop/cli/report"
        return sorted(file for file in ROOT.glob("libs/cli/src/**/*.py") if report not in file.parents)
    inner = ROOT / f"services/{package}/src/tradeloop/{package}"
    return sorted(
        file
        for ring in ("domain", "application")
        for file in (*inner.glob(f"{ring}.py"), *inner.glob(f"{ring}/**/*.py"))
    )


RUNTIME = ROOT / "libs/common/src/tradeloop/common/runtime"
"""What runs every service makes messages for each of them."""


@pytest.mark.parametrize("package", ["cli", *sorted(SERVICES)])
def test_writers_are_those_who_make_the_messages(package: str) -> None:
    files = [*sources(package), *([] if package == "cli" else RUNTIME.glob("*.py"))]
    made = set().union(*(made_in(file.read_text()) for file in files))
    assert made == {topic.message.__name__ for topic in CATALOGUE.values() if package in topic.writers}


def test_only_known_packages_write() -> None:
    assert {writer for topic in CATALOGUE.values() for writer in topic.writers} == SERVICES | {"cli"}


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_a_service_says_what_it_reads_and_writes(service: str) -> None:
    """The docstring of a service is its page: its topics are those of the catalogue."""
    text = ast.get_docstring(ast.parse((ROOT / f"services/{service}/src/tradeloop/{service}/__init__.py").read_text()))
    said = re.search(r"Reads\s(?P<reads>.*?);\swrites\s(?P<writes>.*?)\.(?:\s|$)", text or "", re.S)
    assert said is not None
    read, written = (set(re.findall(r"`(\S+?)`", said[which])) for which in ("reads", "writes"))
    assert read == {topic.name for topic in CATALOGUE.values() if service in topic.readers}
    assert written == {topic.name for topic in CATALOGUE.values() if service in topic.writers}
