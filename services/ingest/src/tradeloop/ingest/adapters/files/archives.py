"""The files of an archive that hold the bars of one instrument: archives of venues hold a file a month, or a symbol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tradeloop.ingest.adapters.files.columns import SeveralInstruments, named
from tradeloop.ingest.adapters.files.tables import members
from tradeloop.ingest.domain import Refused
from tradeloop.ingest.domain.file_names import by_series


def chosen(path: Path, wanted: Sequence[str]) -> list[tuple[str | None, str]]:
    """The members to read, None for a file that is no archive, and the symbol of the wanted rows in each.

    Raises `Refused`; `SeveralInstruments` for an archive of several, where none is named.
    """
    inside = members(path)
    if not inside:
        return [(None, "#".join(wanted))]
    series = by_series(inside)
    if not wanted and len(series) > 1:
        raise SeveralInstruments("the archive", list(series))
    if wanted and wanted[0] in series:
        return [(member, "#".join(wanted[1:])) for member in series[wanted[0]]]
    if wanted and wanted[0] in inside:
        return [(wanted[0], "#".join(wanted[1:]))]
    if len(series) > 1:
        raise Refused(named("the archive", list(series)), f"{wanted[0]} is none of them")
    return [(member, "#".join(wanted)) for member in inside]
