"""`SqlFetched`: what was fetched from sources, in two tables beside the bars."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text, select

from tradeloop.common.clock import Clock
from tradeloop.common.errors import Unavailable
from tradeloop.common.market import Instrument, Timeframe, to_us
from tradeloop.common.sql.database import Database, insert_new, made_or_migrated
from tradeloop.ingest.adapters.fetched_versions import SCHEMA
from tradeloop.ingest.ports import FetchedSpan, merged

_META = MetaData()
SPANS = Table(
    "fetched_spans",
    _META,
    Column("source", Text, primary_key=True),
    Column("instrument", Text, primary_key=True),
    Column("timeframe", Text, primary_key=True),
    Column("start_us", BigInteger, primary_key=True, autoincrement=False),
    Column("end_us", BigInteger, primary_key=True, autoincrement=False),
    Column("left_out", Integer, nullable=False),
    Column("known_us", BigInteger, nullable=False),
)
"""A row for each page: the role of ingest may add rows to this database, and change none."""
TERMS = Table(
    "instrument_terms",
    _META,
    Column("instrument", Text, primary_key=True),
    Column("known_us", BigInteger, primary_key=True, autoincrement=False),
    Column("terms", Text, nullable=False),
)


class SqlFetched:
    """The record in the database of a URL, that of the bars. SQLite gets its tables when they are not there.

    It connects on first use. Safe between threads and processes. Raises `UserError` for a URL of no known database.
    """

    def __init__(self, url: str, clock: Clock) -> None:
        self._database = Database(url, "bar store", Unavailable, made_or_migrated((SPANS, TERMS), SCHEMA))
        self._clock = clock

    @property
    def address(self) -> str:
        """The database, without its password."""
        return self._database.address

    def spans(self, source: str, instrument: str, timeframe: Timeframe) -> Sequence[FetchedSpan]:
        wanted = select(SPANS.c.start_us, SPANS.c.end_us, SPANS.c.left_out).where(
            SPANS.c.source == source, SPANS.c.instrument == instrument, SPANS.c.timeframe == timeframe.value
        )
        with self._database.transaction() as connection:
            return merged(FetchedSpan(*row) for row in connection.execute(wanted))

    def add(self, source: str, instrument: str, timeframe: Timeframe, span: FetchedSpan) -> None:
        row: dict[str, object] = {
            "source": source,
            "instrument": instrument,
            "timeframe": timeframe.value,
            "start_us": span.start_us,
            "end_us": span.end_us,
            "left_out": span.left_out,
            "known_us": to_us(self._clock.now()),
        }
        with self._database.transaction() as connection:
            insert_new(connection, SPANS, [row])

    def terms(self, instrument: str) -> Sequence[tuple[int, Instrument]]:
        wanted = select(TERMS.c.known_us, TERMS.c.terms).where(TERMS.c.instrument == instrument)
        with self._database.transaction() as connection:
            rows = connection.execute(wanted.order_by(TERMS.c.known_us)).all()
        return [(known_us, Instrument.model_validate_json(terms)) for known_us, terms in rows]

    def add_terms(self, instrument: Instrument) -> None:
        known = self.terms(instrument.id)
        if known and known[-1][1] == instrument:
            return
        row: dict[str, object] = {
            "instrument": instrument.id,
            "known_us": to_us(self._clock.now()),
            "terms": instrument.model_dump_json(),
        }
        with self._database.transaction() as connection:
            insert_new(connection, TERMS, [row])

    def close(self) -> None:
        self._database.close()
