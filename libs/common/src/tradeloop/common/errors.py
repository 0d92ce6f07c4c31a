"""The two kinds of error that cross module boundaries."""

from __future__ import annotations


class Unavailable(Exception):
    """Something outside cannot be reached right now. Trying the same call again is safe, and expected."""


class UserError(Exception):
    """Somebody's input is wrong: one line that names the thing and the remedy. The CLI exits with 2."""
