"""Pages and files that are generated from the code, so that they cannot say anything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any


def pages(command: Any) -> Mapping[str, Callable[[], str]]:
    """The text of each generated reference, by its file in `docs`; `command` is the outermost one."""
    from tradeloop.cli.reference import asyncapi, commands, denials, openapi, settings

    return {
        "settings.md": settings.page,
        "cli.md": partial(commands.page, command),
        "denials.md": denials.page,
        "asyncapi.json": asyncapi.file,
        "openapi.json": openapi.file,
    }
