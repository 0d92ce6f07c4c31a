"""The steps that the checks of several contracts are made of."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def fresh(word: str) -> str:
    """A new name that begins with a word: storage that outlives the run still has the names of the last one."""
    return f"{word}-{secrets.token_hex(6)}"


def refused(error: type[Exception], call: Callable[[], object], what: str, says: str = "") -> None:
    """Raise `AssertionError` unless a call raises this error with a message in which the pattern `says` is found."""
    refusal: str | None = None
    try:
        call()
    except error as raised:
        refusal = str(raised)
    assert refusal is not None, f"{what} is no {error.__name__}"
    assert re.search(says, refusal), f"{what} is refused by {refusal!r}, in which {says!r} is not found"


def kept(call: Callable[[], T], what: str) -> T:
    """The result of a call. Raises `AssertionError` when it does not know what it was asked for."""
    try:
        return call()
    except LookupError as error:
        raise AssertionError(f"{what} is gone: {error}") from error
