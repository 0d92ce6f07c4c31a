"""How the stores tell whose fault an error of a database is."""

from __future__ import annotations

import sqlite3

import psycopg
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError

from tradeloop.common.sql.engine import TIMEOUTS, is_about_data, open_engine

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


@pytest.mark.parametrize(
    ("options", "idle", "lock"),
    [
        ("", "1min", "7s"),
        ("-c idle_in_transaction_session_timeout=3s", "3s", "7s"),
        ("-c deadlock_timeout=1s", "1min", "7s"),  # whose name ends in that of another
        ("-c lock_timeout=2s", "1min", "2s"),
    ],
)
def test_a_session_is_bounded_unless_the_url_says_otherwise(
    plain_postgres: str, options: str, idle: str, lock: str
) -> None:
    url = make_url(plain_postgres).update_query_dict({"options": options} if options else {})
    engine = open_engine(url.render_as_string(hide_password=False), "store", {**TIMEOUTS, "lock_timeout": 7_000})
    with engine.connect() as connection:
        connection.rollback()
        found = [connection.scalar(text(f"SHOW {name}")) for name in (*TIMEOUTS, "lock_timeout")]
    engine.dispose()
    assert found == [idle, lock]
