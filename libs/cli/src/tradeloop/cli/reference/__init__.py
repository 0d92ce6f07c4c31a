"""Pages and files that are generated from the code, so that they cannot say anything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def pages() -> Mapping[str, Callable[[], str]]:
    """The text of each generated reference, by its file in `docs`."""
    from tradeloop.cli.reference import commands, denials, settings

    return {
        "settings.md": settings.page,
        "cli.md": commands.page,
        "denials.md": denials.page,
    }
