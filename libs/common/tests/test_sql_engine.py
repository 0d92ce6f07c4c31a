"""How the stores tell whose fault an error of a database is."""

from __future__ import annotations

import sqlite3

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from tradeloop.common.sql.engine import is_about_data

SYSTEMIC = (
    "25006",  # read-only
    "42501",  # insufficient privilege
    "42P01",  # no such table
    "53100",  # disk full
    "53200",  # out of memory
    "53300",  # too many connections
    "57P01",  # admin shutdown
    "57014",  # cancelled, or too slow
    "40P01",  # deadlock
    "40001",  # serialization failure
    "55P03",  # a lock that is not to be had
    "58030",  # input or output
    "XX001",  # corrupted
    "XX000",  # internal
    "28P01",  # wrong password
    "3D000",  # no such database
)
OF_DATA = ("22001", "22003", "22P02", "22021", "23502", "23505", "23514", "54000")


@pytest.mark.parametrize("state", SYSTEMIC)
def test_M7_what_a_server_would_refuse_to_anybody_is_not_about_data(state: str) -> None:
    assert not is_about_data(psycopg.errors.lookup(state)("no"))


@pytest.mark.parametrize("state", OF_DATA)
def test_what_a_server_refuses_for_its_value_is_about_data(state: str) -> None:
    assert is_about_data(psycopg.errors.lookup(state)("no"))


@pytest.mark.parametrize(
    ("error", "about_data"),
    [
        (psycopg.OperationalError("the connection is closed"), False),
        (psycopg.InterfaceError("no"), False),
        (psycopg.DataError("cannot hold NUL"), True),
        (psycopg.ProgrammingError("cannot adapt type"), True),
        (sqlite3.OperationalError("database or disk is full"), False),
        (sqlite3.DatabaseError("malformed"), False),
        (sqlite3.IntegrityError("not unique"), True),
        (sqlite3.DataError("string or blob too big"), True),
    ],
    ids=str,
)
def test_an_error_of_a_driver_is_told_by_its_kind(error: Exception, about_data: bool) -> None:
    assert is_about_data(error) is about_data
    assert is_about_data(DBAPIError("SELECT", None, error)) is about_data
