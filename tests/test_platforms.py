"""The platforms of docs/platforms.md: every dependency that is locked can be installed on each of them, as a wheel."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parents[1]
LOCK: dict[str, Any] = tomllib.loads((ROOT / "uv.lock").read_text())
LINUX = [f"manylinux_2_{minor}" for minor in range(36, 4, -1)] + ["manylinux2014", "manylinux2010", "manylinux1"]
SYSTEMS: Mapping[str, tuple[dict[str, str], list[str]]] = {
    "Linux, x86-64": (
        {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"},
        [f"{name}_x86_64" for name in LINUX],
    ),
    "Linux, ARM64": (
        {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64", "os_name": "posix"},
        [f"{name}_aarch64" for name in LINUX],
    ),
    "macOS, Apple silicon": (
        {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64", "os_name": "posix"},
        [f"macosx_{major}_0_{kind}" for major in range(15, 10, -1) for kind in ("arm64", "universal2")]
        + [f"macosx_10_{minor}_universal2" for minor in range(16, 8, -1)],
    ),
}
PYTHONS = ("3.11.9", "3.12.7")


def environment(system: str, python: str) -> dict[str, str]:
    return {
        **SYSTEMS[system][0],
        "python_version": python.rpartition(".")[0],
        "python_full_version": python,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }


def needed(lock: Mapping[str, Any], root: str, values: dict[str, str]) -> list[dict[str, Any]]:
    """The packages that are installed for one of the workspace, extras included, where the markers hold."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    waiting = [(one, "") for one in lock["package"] if one["name"] == root]
    done: set[tuple[str, str, str]] = set()
    while waiting:
        package, extra = waiting.pop()
        key = (package["name"], package.get("version", ""), extra)
        if key in done:
            continue
        done.add(key)
        found[key[:2]] = package
        wanted = package.get("optional-dependencies", {}).get(extra, []) if extra else package.get("dependencies", [])
        for one in wanted:
            if "marker" in one and not Marker(one["marker"]).evaluate(values):
                continue
            for candidate in lock["package"]:
                if candidate["name"] == one["name"] and one.get("version", candidate.get("version")) == candidate.get(
                    "version"
                ):
                    waiting += [(candidate, ""), *((candidate, extra) for extra in one.get("extra", []))]
    return list(found.values())


def without_wheel(packages: list[dict[str, Any]], system: str, python: str) -> Iterator[str]:
    version = tuple(int(part) for part in python.split(".")[:2])
    platforms = SYSTEMS[system][1]
    usable = {*cpython_tags(version, platforms=platforms), *compatible_tags(version, platforms=platforms)}
    usable |= {Tag(one.interpreter, one.abi, platform) for one in usable for platform in platforms if one.abi == "abi3"}
    for package in packages:
        if "registry" not in package["source"]:
            continue
        names = [wheel["url"].rpartition("/")[2] for wheel in package.get("wheels", [])]
        if not any(parse_wheel_filename(name)[3] & usable for name in names):
            yield f"{package['name']} {package['version']}"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_dependency_has_a_wheel(system: str, python: str) -> None:
    packages = needed(LOCK, "tradeloop-workspace", environment(system, python))
    assert len(packages) > 100
    assert {"torch", "numpy", "ta-lib", "confluent-kafka"} <= {package["name"] for package in packages}
    assert list(without_wheel(packages, system, python)) == []


def test_a_package_without_a_wheel_is_found() -> None:
    system, python = "macOS, Apple silicon", PYTHONS[0]
    url = "https://example.org/{}-1.0-cp311-cp311-{}.whl"
    packages = [
        {"name": name, "version": "1.0", "source": {"registry": "x"}, "wheels": [{"url": url.format(name, platform)}]}
        for name, platform in {"here": "macosx_11_0_arm64", "there": "manylinux2014_x86_64"}.items()
    ]
    assert list(without_wheel(packages, system, python)) == ["there 1.0"]


def test_the_page_names_these_platforms_and_versions() -> None:
    page = (ROOT / "docs/platforms.md").read_text()
    for system in SYSTEMS:
        assert f"{system} |" in page or system in page
    assert "3.11, 3.12" in page
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == ">=3.11,<3.13"
