"""Addresses as they may be shown: without the passwords, tokens and options that a URL can hold."""

from __future__ import annotations

import re

_USER = re.compile(r"(?<=://)(?:(?P<name>[^\s/?#:@]*):\S*@|[^\s/?#@]*@)")
"""A user with a password, which may hold any sign if nobody encoded it; or a user alone."""
_OPTIONS = re.compile(r"(://[^\s?'\"]*)\?[^\s'\")\]>]*")
_PAIR = re.compile(r"\b(\w*(?:password|passwd|secret|token))=[^\s,;&'\")]*", re.IGNORECASE)


def address(url: object) -> str:
    """A URL, or a text that holds some, for logs, errors and pages that anyone may read.

    A password becomes `***`, and so does a user without one, which may be a token. Options after `?` are left out, and
    `password=` loses its value, as in Redis's `host:port,password=...`.
    """
    text = _USER.sub(lambda match: "***@" if match["name"] is None else f"{match['name']}:***@", str(url))
    return _PAIR.sub(r"\1=***", _OPTIONS.sub(r"\1", text))
