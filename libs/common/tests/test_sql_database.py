"""`Database`, which every store in SQL goes through: its tables, its errors, and its connections."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, Table, Text, insert, select
from sqlalchemy.exc import IntegrityError

from tests.tiers import execute, read_only
from tradeloop.common.errors import Unavailable
from tradeloop.common.sql.database import Database, insert_new, made_or_migrated
from tradeloop.common.sql.engine import Schema

NOTES = Table("notes", MetaData(), Column("id", Integer, primary_key=True), Column("text", Text, nullable=False))
SCHEMA = Schema("notes", Path(__file__).parent, head="0001")


class NotesUnavailable(Unavailable):
    """The error of this port."""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/notes.db"
    found: str = request.getfixturevalue("plain_database")
    execute(found, "CREATE TABLE notes_version (version_num text)")
    execute(found, "CREATE TABLE notes (id integer PRIMARY KEY, text text NOT NULL)")
    execute(found, "INSERT INTO notes_version VALUES ('0001')")
    return found


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    with closing(_notes(url)) as found:
        yield found


def _notes(url: str, find_tables: Callable[[Connection], str | None] | None = None) -> Database:
    return Database(url, "note store", NotesUnavailable, find_tables or made_or_migrated([NOTES], SCHEMA))


def _texts(database: Database) -> list[str]:
    with database.transaction() as connection:
        return list(connection.scalars(select(NOTES.c.text).order_by(NOTES.c.id)))


def test_rows_whose_key_is_there_are_left_as_they_are(database: Database) -> None:
    with database.transaction() as connection:
        insert_new(connection, NOTES, [])
        insert_new(connection, NOTES, [{"id": 1, "text": "one"}, {"id": 1, "text": "again"}])
        insert_new(connection, NOTES, [{"id": 2, "text": "two"}, {"id": 1, "text": "a third time"}])
    assert _texts(database) == ["one", "two"]


def test_what_is_refused_for_its_data_comes_through_and_changes_nothing(database: Database) -> None:
    def write() -> None:
        with database.transaction() as connection:
            connection.execute(insert(NOTES).values(id=1, text="one"))
            insert_new(connection, NOTES, [{"id": 2, "text": None}])

    with pytest.raises(IntegrityError):
        write()
    assert _texts(database) == []


def test_an_error_of_whoever_works_in_a_transaction_undoes_it(database: Database) -> None:
    def write() -> None:
        with database.transaction() as connection:
            connection.execute(insert(NOTES).values(id=1, text="one"))
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert _texts(database) == []


def test_tables_are_looked_for_until_they_are_found_and_no_longer(url: str) -> None:
    asked: list[str] = []

    def find(connection: Connection) -> str | None:
        asked.append(connection.dialect.name)
        return None if len(asked) > 2 else "it is not ready; run: something"

    with closing(_notes(url, find)) as database:
        for _ in range(2):
            with pytest.raises(
                NotesUnavailable, match=rf"^note store {re.escape(database.address)}: it is not ready; run: something$"
            ):
                _texts(database)
        for _ in range(2):
            with database.transaction():
                pass
    assert len(asked) == 3


def test_what_is_no_fault_of_the_data_is_the_ports_error(tmp_path: Path) -> None:
    with (
        closing(_notes(f"sqlite:///{tmp_path}/no/notes.db")) as database,
        pytest.raises(NotesUnavailable, match=r"note store sqlite:.*/no/notes\.db: unable to open"),
    ):
        _texts(database)


def test_tables_that_are_not_migrated_are_named_with_the_remedy(plain_database: str) -> None:
    with (
        closing(_notes(plain_database)) as database,
        pytest.raises(NotesUnavailable, match="it has no tables yet; run: tradeloop db migrate"),
    ):
        _texts(database)


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_connections_that_died_or_only_read_are_not_kept(url: str, database: Database) -> None:
    def write(number: int) -> None:
        with database.transaction() as connection:
            insert_new(connection, NOTES, [{"id": number, "text": str(number)}])

    write(1)
    with read_only(url), pytest.raises(NotesUnavailable, match="read-only"):
        write(2)
    write(3)
    assert _texts(database) == ["1", "3"]
