"""Renders a folder of deploy/k8s as Kustomize does, by `kubectl` of the path or else Debian 13's."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from deploy.native.server import CACHE, alone, need, run

_SUITE = "trixie"
"""The Debian release whose kubectl knows components, which came with 1.21."""


def kubectl_program() -> str:
    """The path of kubectl. Raises `ServerError` where it cannot be had."""
    found, own = shutil.which("kubectl"), CACHE / "kubectl" / "kubectl"
    if found:
        return found
    if not own.exists():
        need(["debootstrap"], ["debootstrap"])
        with alone():
            own.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=own.parent, ignore_cleanup_errors=True) as folder:
                options = ["--variant=minbase", "--include=kubectl", "--download-only"]
                run(["debootstrap", *options, _SUITE, f"{folder}/root"])
                [package] = Path(folder, "root", "var", "cache", "apt", "archives").glob("kubectl_*.deb")
                run(["dpkg-deb", "--extract", str(package), f"{folder}/package"])
                Path(folder, "package", "usr", "bin", "kubectl").rename(own)
    return str(own)


OPTIONS = ("artifacts", "training", "gpu")
"""Components that no overlay has, in the order in which one would list them at its end."""


def with_options(tree: Path, overlay: str) -> Path:
    """A new overlay of a copy of deploy/k8s: one that is there, with all that may be added to it."""
    folder = tree / "overlays" / f"{overlay}-options"
    shutil.copytree(tree / "overlays" / overlay, folder)
    file = folder / "kustomization.yaml"
    kustomization = yaml.safe_load(file.read_text())
    kustomization["components"] += [f"../../components/{name}" for name in OPTIONS]
    file.write_text(yaml.safe_dump(kustomization, sort_keys=False))
    return folder


def rendered(folder: Path) -> list[dict[str, Any]]:
    """The objects of an overlay. Raises `ServerError` with what Kustomize says where it makes none."""
    return [each for each in yaml.safe_load_all(run([kubectl_program(), "kustomize", str(folder)])) if each]
