"""Bars in PostgreSQL, with TimescaleDB or without."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.errors import UniqueViolation
from sqlalchemy import Connection, Engine, event, text

from tradeloop.common.bar_store.rows import STORED, columns_of, extra_of, rows_of, with_extra
from tradeloop.common.bar_store.sql.versions import SCHEMA
from tradeloop.common.market import BAR_COLUMNS, BarArrays, Series, Timeframe
from tradeloop.common.sql.engine import complaint

_SETTINGS = {
    # For the short queries here compiling takes longer than running, and skipping duplicates longer than reading them.
    "jit": "off",
    "timescaledb.enable_skipscan": "off",
    # Bars written again, or late, may meet any number of compressed ones.
    "timescaledb.max_tuples_decompressed_per_dml_transaction": "0",
}
_COPIED_FROM = 1_000
"""Fewer bars than this are inserted by one statement."""
_COPIED_AT_ONCE = 50_000

_COLUMNS = ("instrument", "timeframe", "revision", "known_us", *STORED)
_INSERT = (
    f"INSERT INTO bars ({', '.join(_COLUMNS)}) VALUES ({', '.join(['%s'] * len(_COLUMNS))}) ON CONFLICT DO NOTHING"
)
_TAKEN = """
    SELECT EXISTS (
        SELECT FROM unnest(%s::text[]) AS asked (instrument)
        CROSS JOIN LATERAL (
            SELECT FROM bars
            WHERE bars.instrument = asked.instrument AND timeframe = %s AND open_us BETWEEN %s AND %s AND revision = %s
            LIMIT 1
        ) AS bar
    )
"""
_COPY = f"COPY {{}} ({', '.join(_COLUMNS)}) FROM STDIN (FORMAT BINARY)"
_COPY_HEADER, _COPY_TRAILER = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"

_OF_BAR = ", ".join(STORED)
_ASKED = "bars.instrument = asked.instrument AND timeframe = :timeframe AND known_us <= :known_us"
_BETWEEN = f"""
    (SELECT {_OF_BAR} FROM bars WHERE {_ASKED} AND open_us < least(:start_us, :end_us)
    ORDER BY open_us DESC, revision DESC LIMIT 1)
    UNION ALL
    (SELECT DISTINCT ON (open_us) {_OF_BAR} FROM bars WHERE {_ASKED} AND open_us >= :start_us AND open_us < :end_us
    ORDER BY open_us, revision DESC)
"""
_BEFORE = f"""
    SELECT DISTINCT ON (open_us) {_OF_BAR} FROM bars WHERE {_ASKED} AND open_us < :end_us
    ORDER BY open_us DESC, revision DESC LIMIT :frames
"""
# An array for each column: a row of Python objects for each bar takes twice as long.
_HISTORIES = f"""
    SELECT history.* FROM unnest(CAST(:instruments AS text[])) WITH ORDINALITY AS asked (instrument, place)
    CROSS JOIN LATERAL (
        SELECT {", ".join(f"array_agg({name})" for name in STORED[:-1])},
            CASE WHEN count(extra) > 0 THEN json_agg(extra) END
        FROM ({{}}) AS bar
    ) AS history
    ORDER BY place
"""

_EXTRA_COLUMNS = """
    SELECT DISTINCT jsonb_object_keys(extra) FROM bars
    WHERE instrument = ANY(%s) AND timeframe = %s AND open_us >= %s AND open_us < %s AND extra IS NOT NULL
"""


class PostgresqlBars:
    """The statements of PostgreSQL, in the transaction of a connection."""

    def __init__(self, engine: Engine) -> None:
        event.listen(engine, "connect", _set_up)

    def find_table(self, connection: Connection) -> str | None:
        """Why the table cannot be used yet, and the remedy; None when it can."""
        return complaint(connection, SCHEMA)

    def insert(
        self, connection: Connection, timeframe: Timeframe, bars: BarArrays, revision: int, known_us: int
    ) -> None:
        """Store the present bars, but for those whose revision is there."""
        if bars.present.sum() >= _COPIED_FROM:
            _copy(connection, timeframe, bars, revision, known_us)
            return
        rows = [
            (instrument, timeframe.value, revision, known_us, *row)
            for a, instrument in enumerate(bars.instruments)
            for row in rows_of(bars, a)
        ]
        if rows:
            connection.exec_driver_sql(_INSERT, rows)

    def between(
        self,
        connection: Connection,
        instruments: Sequence[str],
        timeframe: Timeframe,
        start_us: int,
        end_us: int,
        known_us: int,
    ) -> list[Series]:
        """Each instrument's bars of a range, after the last one before it; as they were known."""
        range_us = {"start_us": start_us, "end_us": end_us, "known_us": known_us}
        return _histories(connection, _BETWEEN, instruments, timeframe, range_us)

    def before(
        self,
        connection: Connection,
        instruments: Sequence[str],
        timeframe: Timeframe,
        end_us: int,
        frames: int,
        known_us: int,
    ) -> list[Series]:
        """Each instrument's last bars before a time; as they were known."""
        range_us = {"end_us": end_us, "frames": frames, "known_us": known_us}
        return _histories(connection, _BEFORE, instruments, timeframe, range_us)

    def extra_columns(
        self, connection: Connection, instruments: Sequence[str], timeframe: Timeframe, start_us: int, end_us: int
    ) -> Iterable[str]:
        """The further columns of any bar of a range."""
        asked = (list(instruments), timeframe.value, start_us, end_us)
        return connection.exec_driver_sql(_EXTRA_COLUMNS, asked).scalars()


def _set_up(connection: psycopg.Connection[tuple[object, ...]], _: object) -> None:
    wanted = ", ".join("(%s, %s)" for _ in _SETTINGS)
    given = [word for setting in _SETTINGS.items() for word in setting]
    # Only those that this server knows: the names of another are no error to set, but a warning in its log.
    connection.execute(
        f"SELECT set_config(name, wanted.value, false) FROM (VALUES {wanted}) AS wanted (name, value) "
        "JOIN pg_settings USING (name)",
        given,
    )
    connection.commit()


def _histories(
    connection: Connection, bars: str, instruments: Sequence[str], timeframe: Timeframe, range_us: Mapping[str, int]
) -> list[Series]:
    histories: list[Series] = []
    asked = {"instruments": list(instruments), "timeframe": timeframe.value, **range_us}
    for *columns, extra in connection.execute(text(_HISTORIES.format(bars)), asked):
        history = columns_of([] if columns[0] is None else columns)
        if extra is not None:
            history = with_extra(history, extra)
        order = np.argsort(history["open_us"])
        histories.append({name: column[order] for name, column in history.items()})
    return histories


def _copy(connection: Connection, timeframe: Timeframe, bars: BarArrays, revision: int, known_us: int) -> None:
    """Many bars at once. Straight into the table when none of them is there yet, else past those that are.

    The table's key decides in the end: a writer who was faster since we looked makes the short way fail as a whole.
    """
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)

    def copy(table: str) -> None:
        with driver.cursor().copy(_COPY.format(table)) as stream:
            stream.write(_COPY_HEADER)
            for block in _blocks(timeframe, bars, revision, known_us):
                stream.write(block)
            stream.write(_COPY_TRAILER)

    first_us, last_us = int(bars.open_us[0]), int(bars.open_us[-1])
    asked = (list(bars.instruments), timeframe.value, first_us, last_us, revision)
    taken = driver.execute(_TAKEN, asked).fetchone()
    if taken == (False,):
        try:
            with driver.transaction():
                copy("bars")
        except UniqueViolation:
            pass
        else:
            return
    driver.execute("CREATE TEMPORARY TABLE incoming_bars (LIKE bars) ON COMMIT DROP")
    copy("incoming_bars")
    driver.execute("INSERT INTO bars SELECT * FROM incoming_bars ON CONFLICT DO NOTHING")


def _blocks(timeframe: Timeframe, bars: BarArrays, revision: int, known_us: int) -> Iterator[bytes]:
    """The present bars as rows of COPY's binary format: a row starts with how many fields it has, a field with its
    length in bytes, or -1 for NULL; numbers are big-endian."""
    for a, name in enumerate(bars.instruments):
        instrument = name.encode()
        # What is NULL has no bytes: rows of another length.
        known = ~np.isnan(bars.volume[:, a])
        extended = np.zeros(len(bars), np.bool_)
        for column in bars.extra.values():
            extended |= ~np.isnan(column[:, a])
        for has_volume, has_extra in product((True, False), repeat=2):
            rows = np.flatnonzero(bars.present[:, a] & (known == has_volume) & (extended == has_extra))
            null = {"volume": not has_volume, "extra": not has_extra}
            for start in range(0, len(rows), _COPIED_AT_ONCE):
                part = rows[start : start + _COPIED_AT_ONCE]
                fields: dict[str, tuple[str, object]] = {
                    "instrument": (f"S{len(instrument)}", instrument),
                    "timeframe": (f"S{len(timeframe.value)}", timeframe.value.encode()),
                    "revision": (">i4", revision),
                    "known_us": (">i8", known_us),
                    "open_us": (">i8", bars.open_us[part]),
                    **{name: (">f8", getattr(bars, name)[part, a]) for name in BAR_COLUMNS},
                    "extra": _jsonb(bars, a, part) if has_extra else ("S1", b""),
                }
                yield _encoded(fields, len(part), null=[name for name, absent in null.items() if absent])


def _jsonb(bars: BarArrays, a: int, rows: NDArray[np.intp]) -> tuple[str, object]:
    """Further columns as JSONB takes them: the version of its format, then text. All of one length, thanks to blanks
    at their ends, which JSON does not mind."""
    texts = [f"\x01{text}" for text in extra_of(bars, a, rows)]
    longest = max(map(len, texts))
    return f"S{longest}", np.array([text.ljust(longest).encode() for text in texts])


def _encoded(fields: dict[str, tuple[str, object]], rows: int, null: Iterable[str]) -> bytes:
    layout = [("count", ">i2")]
    for name, (kind, _) in fields.items():
        layout += [(f"{name} length", ">i4")] if name in null else [(f"{name} length", ">i4"), (name, kind)]
    block = np.empty(rows, dtype=np.dtype(layout))
    block["count"] = len(fields)
    for name, (kind, value) in fields.items():
        block[f"{name} length"] = -1 if name in null else np.dtype(kind).itemsize
        if name not in null:
            block[name] = value
    return block.tobytes()
