"""This machine and what is installed: Python, packages, folders, free space, Docker."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from pathlib import Path

from tradeloop.cli.doctor.finding import Finding, failed, ok, unused, warning

_GIB = 1 << 30
_ROOM = 3
"""Less than so many times the least free space is worth a warning."""

PYTHONS = ("3.11", "3.12")
"""The versions of Python that Tradeloop is tested with."""


def python() -> Iterator[Finding]:
    """The interpreter and the packages of Tradeloop: of one version, and with what they ask for."""
    here = platform.python_version()
    said = f"{here} on {platform.system()} {platform.machine()}"
    if here.rpartition(".")[0] in PYTHONS:
        yield ok("Python", said)
    else:
        yield failed("Python", f"{said} is not one of {', '.join(PYTHONS)}", "make an environment with one of them")
    ours = {one.name: one.version for one in distributions() if one.name.startswith("tradeloop-")}
    versions = sorted(set(ours.values()))
    if len(versions) == 1:
        yield ok("packages", f"tradeloop {versions[0]}, {len(ours)} packages")
    else:
        several = ", ".join(f"{name} {number}" for name, number in sorted(ours.items()))
        yield failed("packages", f"they are of different versions: {several}", "install all of one release (make sync)")
    if missing := sorted(_missing(ours)):
        yield failed("packages", f"not installed: {', '.join(missing)}", "install them (make sync)")


def _missing(packages: Sequence[str] | dict[str, str]) -> Iterator[str]:
    """Packages that are asked for and not there, extras left out: by name, since installers see to versions."""
    for name in packages:
        for requirement in requires(name) or ():
            wanted, _, condition = requirement.partition(";")
            if condition.strip():
                continue
            bare = wanted.split("[")[0].split("<")[0].split(">")[0].split("=")[0].split("!")[0].split("~")[0].strip()
            try:
                version(bare)
            except PackageNotFoundError:
                yield bare


def space(what: str, folder: Path, least_gib: float) -> Iterator[Finding]:
    """The free space where a folder is, or would be made."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free_gib = shutil.disk_usage(there).free / _GIB
    said = f"{free_gib:,.1f} GiB free at {there}"
    remedy = f"make room, or move {what} to another disk"
    if free_gib < least_gib:
        yield failed(f"disk of {what}", f"{said}, {least_gib:g} are needed", remedy)
    elif free_gib < _ROOM * least_gib:
        yield warning(f"disk of {what}", said, remedy)
    else:
        yield ok(f"disk of {what}", said)
    if (inodes := os.statvfs(there)).f_files and inodes.f_favail < 10_000:
        yield warning(f"disk of {what}", f"{inodes.f_favail:,} files can still be made at {there}", remedy)


def folder(what: str, path: Path, writes: bool) -> Iterator[Finding]:
    """A folder that a service reads, or writes."""
    remedy = f"make it, and let the user that runs the service {'write' if writes else 'read'} there"
    if not path.is_dir():
        yield failed(what, f"{path} is no folder", remedy)
    elif not os.access(path, os.R_OK | os.X_OK | (os.W_OK if writes else 0)):
        yield failed(what, f"{path} may not be {'written' if writes else 'read'} by this user", remedy)
    else:
        yield ok(what, f"{path}")


def docker(run: Callable[[Sequence[str]], str | None] | None = None) -> Iterator[Finding]:
    """The engine and Compose, where there are any."""
    ask = run or _answer
    if run is None and shutil.which("docker") is None:
        yield unused("Docker", "not installed; `make up` needs it, `make up-native` and the command do not")
        return
    engine = ask(("docker", "version", "--format", "{{.Server.Version}}"))
    if not engine:
        yield unused("Docker", "no engine answers; `make up` needs one, `make up-native` and the command do not")
        return
    compose = ask(("docker", "compose", "version", "--short"))
    if not compose:
        yield warning("Docker", f"{engine} without Compose", "install Compose v2, which `make up` needs")
    elif not compose.lstrip("v").split(".")[0].isdecimal() or int(compose.lstrip("v").split(".")[0]) < 2:
        yield warning("Docker", f"{engine} with Compose {compose}", "install Compose v2 or later, as `make up` needs")
    else:
        yield ok("Docker", f"{engine} with Compose {compose}")


def _answer(command: Sequence[str]) -> str | None:
    """The words of a program that ends well."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, stdin=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
