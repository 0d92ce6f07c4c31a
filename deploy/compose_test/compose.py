"""Compose as the tests call it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.compose_test.engine import run, say

PROJECT = "tradeloop-test"
BUILD_TIMEOUT_S = 3600
"""A busy machine with a slow network takes half an hour for images that are built from nothing."""


class Compose:
    """Compose, for one project, with its files and environment."""

    def __init__(self, command: Sequence[str], files: Sequence[Path], environment: Mapping[str, str]) -> None:
        self._command = [*command, "--progress=quiet", "--project-name", PROJECT]
        for file in files:
            self._command += ["--file", str(file)]
        self._environment = environment

    def __call__(self, *arguments: str, timeout_s: float = 120.0) -> str:
        return run([*self._command, *arguments], timeout_s=timeout_s, environment=self._environment)

    def show(self, *arguments: str) -> None:
        """Let Compose print for itself."""
        subprocess.run([*self._command, *arguments], env={**os.environ, **self._environment}, check=False)


def build(compose: Compose, *services: str) -> None:
    """Build images: of these services, or of all. What is built already takes seconds."""
    began = time.monotonic()
    compose("build", "--quiet", *services, timeout_s=BUILD_TIMEOUT_S)
    say(f"images are built, {time.monotonic() - began:.0f} s")
