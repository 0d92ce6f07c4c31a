"""Symbols of venues: taken from an instrument's id, and refused with those that are like them."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from tradeloop.common.errors import UserError
from tradeloop.common.market import Instrument


def symbol_of(venue: str, instrument: Instrument) -> str:
    """The venue's symbol of an instrument. Raises `UserError` for an instrument of another venue."""
    named, _, symbol = instrument.id.partition(":")
    if named != venue:
        raise UserError(f"{instrument.id} is no instrument of {venue}: ask the source {named} for it")
    return symbol


def unknown(what: str, name: str, known: Collection[str]) -> UserError:
    """The error for a name that `what` does not have, with those that it may have been meant for."""
    near = difflib.get_close_matches(name.upper(), {one.upper(): one for one in known}, 3, 0.5)
    originals = {one.upper(): one for one in known}
    meant = [originals[one] for one in near]
    told = f"did you mean {' or '.join(meant)}?" if meant else f"it has {len(known):,}, such as {_some(known)}"
    return UserError(f"{what} has no {name}: {told}")


def _some(known: Collection[str]) -> str:
    return ", ".join(sorted(known)[:3]) or "none"
