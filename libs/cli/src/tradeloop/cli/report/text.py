"""Numbers and times as a reader wants them."""

from __future__ import annotations

import math

from tradeloop.common.market import from_us

NOTHING = "\N{EN DASH}"
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def number(value: float, decimals: int) -> str:
    """A number with thousands separators and a true minus; zero has no sign."""
    text = f"{value:,.{decimals}f}"
    if float(text.replace(",", "")) == 0.0:
        text = text.removeprefix("-")
    return text.replace("-", "\N{MINUS SIGN}")


def money(value: float) -> str:
    """An amount: whole units once those are fine enough."""
    return number(value, 0 if abs(value) >= 10_000 else 2)


def price(value: float) -> str:
    """Six significant digits, and no decimals beyond them."""
    return number(value, max(0, 5 - math.floor(math.log10(abs(value))))) if value else "0"


def quantity(value: float) -> str:
    """Six significant digits, without the zeros behind them."""
    return f"{value:,.6g}"


def percent(value: float, decimals: int = 2) -> str:
    return number(100.0 * value, decimals) + "\N{NARROW NO-BREAK SPACE}%"


def change(value: float) -> str:
    """A share with its sign."""
    text = percent(value)
    return f"+{text}" if value > 0.0 and not text.startswith("0.00") else text


def time(time_us: int) -> str:
    """A time to the minute, UTC."""
    return f"{from_us(time_us):%Y-%m-%d %H:%M}"


def clock(time_us: int) -> str:
    return f"{from_us(time_us):%H:%M}"


def day(time_us: int) -> str:
    at = from_us(time_us)
    return f"{at.day} {_MONTHS[at.month - 1]}"


def month(time_us: int) -> str:
    at = from_us(time_us)
    return f"{_MONTHS[at.month - 1]} {at.year}"


def year(time_us: int) -> str:
    return str(from_us(time_us).year)


def count(number: int, what: str) -> str:
    """A number of things, which are called `what` where there is one."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def span(length_us: int) -> str:
    """A length of time in its two largest units; in years from two of them on."""
    minutes = length_us // 60_000_000
    days, hours = divmod(minutes // 60, 24)
    if days >= 2 * 365:
        return f"{days / 365.2425:.1f} years"
    parts = [(days, "day"), (hours, "hour"), (minutes % 60, "minute")]
    first = next((i for i, (count, _) in enumerate(parts) if count), 2)
    shown = [f"{count} {unit}{'s' * (count != 1)}" for count, unit in parts[first : first + 2] if count]
    return " ".join(shown) or "0 minutes"
