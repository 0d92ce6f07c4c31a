"""The port's errors for what venues answer through HTTP."""

from __future__ import annotations

import math
from typing import Any

from tradeloop.common.errors import UserError
from tradeloop.ingest.ports import SourceUnavailable


def answered(venue: str, status: int, text: str, pause_s: float | None) -> SourceUnavailable | UserError:
    """The error for a status that is not 200."""
    told = f"{status} {' '.join(text.split())[:300]}"
    if status == 401:
        return UserError(f"{venue} refuses the credentials: {told}: correct its key and secret")
    if status == 403:
        return UserError(f"{venue} denies permission: {told}: ask it for this data, or take another feed")
    if status == 429:
        return SourceUnavailable(f"{venue} says that it is asked too often: {told}", pause_s)
    if status >= 500:
        return SourceUnavailable(f"{venue} does not answer: {told}", pause_s)
    return UserError(f"{venue} refuses the request: {told}")


def retry_after(headers: Any) -> float | None:
    """The seconds of a `Retry-After` header, where there is one."""
    for name, value in dict(headers or {}).items():
        if str(name).lower() == "retry-after":
            try:
                seconds = float(value)
            except ValueError:
                return None
            return seconds if math.isfinite(seconds) and seconds >= 0 else None
    return None
