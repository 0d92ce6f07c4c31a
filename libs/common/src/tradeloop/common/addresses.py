"""Texts as they may be shown: without the secrets of this process, and what a URL can hold of others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus, unquote

_USER = re.compile(r"(?<=://)(?:(?P<name>[^\s/?#:@]*):\S*@|[^\s/?#@]*@)")
"""A user with a password, which may hold any sign if nobody encoded it; or a user alone."""
_OPTIONS = re.compile(r"(://[^\s?'\"]*)\?[^\s'\")\]>]*")
_NAMED = r"\w*(?:password|passwd|secret|token|api[_-]?key|access[_-]?key)"
_PAIR = re.compile(rf"\b({_NAMED})=[^\s,;&'\")]*", re.IGNORECASE)
_QUOTED = re.compile(rf"""(\\?["'][\w-]*{_NAMED}\\?["']\s*:\s*b?\\?(["']))(?:(?!\\?\2).)*""", re.IGNORECASE)
"""The same in the text of a mapping: JSON, perhaps within JSON, or Python's own."""
_SIGNED_IN = re.compile(
    r"""(authorization[\\"']*\s*[:=]\s*b?[\\"']*(?:\w+\s+)?|\bbearer\s+)[\w.~+/=:-]{8,}""", re.IGNORECASE
)
"""The credentials of an `Authorization` header."""
_NAME = re.compile(rf"[\w-]*{_NAMED}s?|authorization|credentials?", re.IGNORECASE)
_SHORTEST = 8
"""A secret with fewer characters may be a word of any text: it is not looked for."""

_hidden: frozenset[str] = frozenset()
_known: re.Pattern[str] | None = None


def address(url: object) -> str:
    """A URL, or a text that holds some, for logs, errors and pages that anyone may read.

    A password becomes `***`, and so does a user without one, which may be a token. Options after `?` are left out, and
    `password=` loses its value, as in Redis's `host:port,password=...`, and so do mappings and headers that stand in
    the text. What `hide` was told is replaced wherever it stands.
    """
    text = str(url)
    if _known is not None:
        text = _known.sub("***", text)
    text = _USER.sub(lambda match: "***@" if match["name"] is None else f"{match['name']}:***@", text)
    text = _PAIR.sub(r"\1=***", _OPTIONS.sub(r"\1", text))
    return _SIGNED_IN.sub(r"\1***", _QUOTED.sub(r"\1***", text))


def is_secret(name: str) -> bool:
    """Whether a field of this name holds a secret, whatever its type is."""
    return _NAME.fullmatch(name.rpartition(".")[2]) is not None


def hide(secrets: Iterable[str]) -> None:
    """Leave these out of every text from now on, as they are and as a URL encodes them; of a URL or of options,
    its password.

    For the time of the process. One of fewer than eight characters is not looked for.
    """
    global _hidden, _known
    found = set[str]()
    for secret in secrets:
        match = _USER.search(secret)
        if match is not None and match["name"] is not None:
            found.add(match[0].removeprefix(match["name"] + ":")[:-1])
        elif pairs := [pair[0].partition("=")[2] for pair in _PAIR.finditer(secret)]:
            found.update(pairs)
        elif "://" not in secret:
            found.add(secret)
    plain = found | set(map(unquote, found))
    ways = {way(each) for each in plain for way in (str, quote, quote_plus, _fully_quoted)}
    more = {each for each in ways if len(each) >= _SHORTEST} - _hidden
    if more:
        _hidden |= more
        _known = re.compile("|".join(map(re.escape, sorted(_hidden, key=len, reverse=True))))


def _fully_quoted(secret: str) -> str:
    return quote(secret, safe="")
