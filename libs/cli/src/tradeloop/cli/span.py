"""The range of bars that a command works on, as its options `--from` and `--to` say it."""

from __future__ import annotations

from datetime import UTC, datetime

from tradeloop.common.errors import UserError
from tradeloop.common.market import EVER_US, to_us

Span = tuple[str | None, str | None]
"""The texts of `--from` and `--to`."""


def span_us(span: Span) -> tuple[int, int]:
    """The half-open range of open times, in microseconds since the epoch. Raises `UserError` for one that is none."""
    start, end = span
    start_us, end_us = (
        otherwise if text is None else time_us(option, text)
        for option, text, otherwise in (("--from", start, -EVER_US), ("--to", end, EVER_US))
    )
    if start_us >= end_us:
        raise UserError(f"--from {start} is not before --to {end}: no bar can open in between")
    return start_us, end_us


def time_us(option: str, text: str) -> int:
    """The microseconds since the epoch of an option's time, in UTC where it names no zone. Raises `UserError`."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"{option} {text}: give an ISO 8601 time, such as 2022-01-31T12:00") from None
    return to_us(time if time.tzinfo is not None else time.replace(tzinfo=UTC))
