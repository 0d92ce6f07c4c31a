"""Snapshots of a book, for the instruments that its universe has now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tradeloop.common.errors import UserError


class BookMismatch(UserError):
    """A book holds what its portfolio no longer trades."""


def of_instruments(book: Mapping[str, Any], instruments: Sequence[str], new: Mapping[str, Any]) -> Mapping[str, Any]:
    """A snapshot of a book, its instruments put in another order. One that it does not know is as in a `new` book.

    Raises `BookMismatch` where it holds a position in an instrument that is not among them.
    """
    if not book:
        return new
    before = tuple(book.get("instruments", instruments))
    rest = {name: value for name, value in book.items() if name != "instruments"}
    if before == tuple(instruments):
        return rest
    held = [one for one, quantity in zip(before, rest["position"], strict=True) if quantity and one not in instruments]
    if held:
        raise BookMismatch(
            f"the book holds {', '.join(held)}, which its portfolio no longer trades: put it back into the universe, "
            "close the position, then take it out"
        )
    place = {instrument: a for a, instrument in enumerate(before)}

    def moved(name: str, values: Sequence[Any]) -> list[Any]:
        return [values[place[one]] if one in place else new[name][a] for a, one in enumerate(instruments)]

    return {name: moved(name, value) if isinstance(value, list) else value for name, value in rest.items()}
