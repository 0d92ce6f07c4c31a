"""Names of files of bars: their endings, and the dates by which files of one instrument follow each other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

TEXT_ENDINGS = (".csv", ".txt", ".tsv", ".tab", ".dat", ".prn", ".asc")
JSON_ENDINGS = (".json", ".jsonl", ".ndjson")
PARQUET_ENDINGS = (".parquet", ".pq")
ARROW_ENDINGS = (".feather", ".arrow", ".ipc")
PACKED_ENDINGS = (".gz", ".zst", ".zstd")
ENDINGS = (
    *TEXT_ENDINGS,
    *JSON_ENDINGS,
    *PARQUET_ENDINGS,
    *ARROW_ENDINGS,
    ".zip",
    *(f"{ending}{packed}" for ending in (*TEXT_ENDINGS, *JSON_ENDINGS) for packed in PACKED_ENDINGS),
)
"""The endings of files of bars, `.csv` first."""

_DATE = r"(?:19|20)\d{2}(?:[-_.]?(?:0[1-9]|1[0-2])(?:[-_.]?(?:0[1-9]|[12]\d|3[01]))?)?"
_SPAN = re.compile(
    rf"[-_. ]*(?<!\d){_DATE}(?:[-_. ]*(?:to|-|_)?[-_. ]*{_DATE})?(?!\d)|[-_. ]*(?:part|pt)[-_. ]*\d+$", re.I
)
"""The dates in a name, by which files of one instrument follow each other, or the number of a part."""


def series_name(name: str) -> str:
    """The name of a file without its ending, and without the dates by which it differs from its neighbours."""
    stem = without_ending(PurePosixPath(name).name)
    return _SPAN.sub("", stem).strip("-_. ") or stem


def by_series(names: Iterable[str]) -> Mapping[str, list[str]]:
    """The names of files that follow each other, by what they have in common."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(series_name(name), []).append(name)
    return found


def without_ending(name: str) -> str:
    """The name of a file without the ending of its kind."""
    for ending in sorted(ENDINGS, key=len, reverse=True):
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)]
    return name
