"""The installed strategies: found by their entry points, loaded, and what is wrong with one said in a line."""

from __future__ import annotations

import difflib
import importlib
import traceback
from importlib.metadata import entry_points
from pathlib import Path

from tradeloop.common.strategy.definition import Strategy, StrategyError

GROUP = "tradeloop.strategies"
"""The entry point group."""


def installed() -> dict[str, str]:
    """Names of the installed strategies, and where each lives (`module:attribute`)."""
    return {point.name: point.value for point in sorted(entry_points(group=GROUP))}


def load(name: str) -> Strategy:
    """The installed strategy of that name.

    Raises `StrategyError` when there is none or more than one, when its package does not import, or when what it
    names is no `Strategy`.
    """
    found = {point.value: point for point in entry_points(group=GROUP, name=name)}
    if not found:
        names = list(installed())
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"installed are: {', '.join(names) or 'none'}"
        raise StrategyError(f"strategy {name} is not installed; {hint}")
    if len(found) > 1:
        raise StrategyError(
            f"strategy {name} is in several packages, {' and '.join(sorted(found))}; uninstall all but one"
        )
    [(where, point)] = found.items()
    try:
        strategy = point.load()
    except Exception as error:
        raise StrategyError(f"strategy {name}: {where} cannot be loaded: {in_one_line(error)}") from error
    if not isinstance(strategy, Strategy):
        raise StrategyError(f"strategy {name}: {where} is a {type(strategy).__name__}, not a Strategy")
    if strategy.name != name:
        raise StrategyError(f"strategy {name}: {where} calls itself {strategy.name}; give both the same name")
    return strategy


def in_one_line(error: BaseException) -> str:
    """An error inside an author's code, on one line: the error, and which line of theirs raised it."""
    # What lies between them and here: our package, and Python's import of theirs.
    between = (str(Path(__file__).parents[1]), str(Path(importlib.__file__).parent), "<frozen")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        # The backport of Python's own importlib.metadata takes its place once any library has imported it.
        if not frame.filename.startswith(between) and "importlib_metadata" not in Path(frame.filename).parts
    ]
    theirs = [frame for frame in frames if frame.filename == frames[0].filename]
    where = f" ({'/'.join(Path(theirs[-1].filename).parts[-2:])}:{theirs[-1].lineno})" if theirs else ""
    return " ".join(f"{type(error).__name__}: {error}{where}".split())
