"""The storage tiers: how much a database can do for bars beyond a table, and how its tables get there.

Three tiers of PostgreSQL hold the same bars and answer the same queries; the higher ones are faster and smaller:

- `postgresql`: a table, and plain views over it.
- `timescaledb-apache`: the table is a hypertable, in chunks of four weeks of open times.
- `timescaledb-community`: chunks are compressed after 90 days, and the views are continuous aggregates.

The views are for dashboards and questions by hand; services read the table. `bars_current` holds each bar in its
highest revision. `bars_5m` to `bars_1d` hold longer bars, one for each `base` (a shorter timeframe that is stored for
the instrument, and divides them); a bar counts in the bucket in which it opens; `bars` in them counts the bars of a
bucket, which may be incomplete; a volume is NULL when one of them is. As plain views they are exact at any time. As
continuous aggregates they are exact for what is newer than their last refresh and for what it covered: bars and
revisions stored later for older times appear after the next two refreshes, 20 minutes at most, and until then the
earlier values stand.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

import structlog
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from tradeloop.common.market import BAR_COLUMNS, Timeframe
from tradeloop.common.sql.engine import cause

log = structlog.get_logger(__name__)

_DAY_US = Timeframe.D1.us
_CHUNK_US = 28 * _DAY_US
_COMPRESS_AFTER_US = 90 * _DAY_US
_REFRESHED_US = 36_525 * _DAY_US
"""How far back a refresh looks for what changed. TimescaleDB's own "from the beginning" overflows on integers."""
_REFRESH_EVERY = "10 minutes"
_CURRENT = "bars_current"
_LONGER = {f"bars_{longer}": longer for longer in map(Timeframe, ("5m", "15m", "1h", "4h", "1d"))}


class StorageTier(StrEnum):
    """The kind of database that holds the bars."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"
    APACHE = "timescaledb-apache"
    COMMUNITY = "timescaledb-community"


def tier_of(connection: Connection) -> StorageTier:
    """The tier that a database's bars are at."""
    if connection.dialect.name == "sqlite":
        return StorageTier.SQLITE
    if not _has_extension(connection) or not _hypertable(connection):
        return StorageTier.POSTGRESQL
    return StorageTier.COMMUNITY if _CURRENT in _continuous_aggregates(connection) else StorageTier.APACHE


def raise_tier(connection: Connection) -> None:
    """Bring the table of bars to the highest tier that its server allows. Changes nothing when it is there."""
    if not _enable_extension(connection):
        _create_views(connection)
        return
    if not _hypertable(connection):
        connection.exec_driver_sql(
            f"SELECT create_hypertable('bars', by_range('open_us', {_CHUNK_US}::bigint), migrate_data => true, "
            "create_default_indexes => false)"
        )
    if connection.scalar(text("SELECT current_setting('timescaledb.license')")) == "timescale":
        _compress(connection)
        _create_aggregates(connection)
    else:
        _create_views(connection)


def _has_extension(connection: Connection) -> bool:
    return bool(connection.scalar(text("SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'")))


def _enable_extension(connection: Connection) -> bool:
    """Create the extension where the server has it and lets us."""
    if _has_extension(connection):
        return True
    # This setting is there when the library was loaded as the server started. Without that, creating the extension
    # would end the connection.
    if not connection.scalar(text("SELECT current_setting('timescaledb.max_background_workers', true)")):
        return False
    try:
        with connection.begin_nested():
            connection.exec_driver_sql("CREATE EXTENSION timescaledb")
    except DBAPIError as error:
        remedy = "let a superuser run CREATE EXTENSION timescaledb in this database, then: tradeloop db migrate"
        log.warning("TimescaleDB stays unused", cause=cause(error), remedy=remedy)
        return False
    return True


def _hypertable(connection: Connection) -> bool:
    found = "SELECT count(*) FROM timescaledb_information.hypertables WHERE hypertable_name = 'bars'"
    return bool(connection.scalar(text(found)))


def _continuous_aggregates(connection: Connection) -> Collection[str]:
    return connection.scalars(text("SELECT view_name FROM timescaledb_information.continuous_aggregates")).all()


def _of_whole_minutes(connection: Connection) -> bool:
    """Whether the view of bars is from before there were bars of seconds, of which it would keep one a minute."""
    found = "SELECT view_definition FROM timescaledb_information.continuous_aggregates WHERE view_name = :view"
    return str(Timeframe.M1.us) in str(connection.scalar(text(found), {"view": _CURRENT}))


def _compress(connection: Connection) -> None:
    run = connection.exec_driver_sql
    run(
        "CREATE OR REPLACE FUNCTION bars_now_us() RETURNS bigint LANGUAGE sql STABLE AS "
        "'SELECT (extract(epoch FROM now()) * 1000000)::bigint'"
    )
    run("SELECT set_integer_now_func('bars', 'bars_now_us', replace_if_exists => true)")
    enabled = "SELECT compression_enabled FROM timescaledb_information.hypertables WHERE hypertable_name = 'bars'"
    if not connection.scalar(text(enabled)):
        run(
            "ALTER TABLE bars SET (timescaledb.compress, timescaledb.compress_segmentby = 'instrument, timeframe', "
            "timescaledb.compress_orderby = 'open_us, revision')"
        )
        run(f"SELECT add_compression_policy('bars', {_COMPRESS_AFTER_US}::bigint)")


def _create_views(connection: Connection) -> None:
    columns = f"instrument, timeframe, open_us, {', '.join(BAR_COLUMNS)}, revision"
    bars = f"SELECT DISTINCT ON (instrument, timeframe, open_us) {columns} FROM bars"
    connection.exec_driver_sql(
        f"CREATE OR REPLACE VIEW {_CURRENT} AS {bars} ORDER BY instrument, timeframe, open_us, revision DESC"
    )
    for view, timeframe in _LONGER.items():
        bucket = f"open_us - mod(mod(open_us, {timeframe.us}) + {timeframe.us}, {timeframe.us})"
        first, last = "(array_agg(open ORDER BY open_us))[1]", "(array_agg(close ORDER BY open_us DESC))[1]"
        connection.exec_driver_sql(
            f"CREATE OR REPLACE VIEW {view} AS {_longer_bars(timeframe, bucket, first=first, last=last)}"
        )


def _create_aggregates(connection: Connection) -> None:
    """Create them in two steps: one cannot take the highest revision of each bar and then sum the bars."""
    kind = "VIEW"  # of a lower tier
    if _CURRENT in _continuous_aggregates(connection):
        if not _of_whole_minutes(connection):
            return
        kind = "MATERIALIZED VIEW"
    for view in (*_LONGER, _CURRENT):
        connection.exec_driver_sql(f"DROP {kind} IF EXISTS {view}")
    values = ", ".join(f"last({name}, revision) AS {name}" for name in BAR_COLUMNS)
    bucket = f"time_bucket({Timeframe.S1.us}::bigint, open_us) AS open_us"
    bars = f"SELECT instrument, timeframe, {bucket}, {values}, max(revision) AS revision FROM bars GROUP BY 1, 2, 3"
    _aggregate(connection, _CURRENT, bars)
    connection.exec_driver_sql(f"ALTER MATERIALIZED VIEW {_CURRENT} SET (timescaledb.compress)")
    connection.exec_driver_sql(f"SELECT add_compression_policy('{_CURRENT}', {_COMPRESS_AFTER_US}::bigint)")
    for view, timeframe in _LONGER.items():
        bucket = f"time_bucket({timeframe.us}::bigint, open_us)"
        first, last = "first(open, open_us)", "last(close, open_us)"
        _aggregate(connection, view, _longer_bars(timeframe, bucket, first=first, last=last))


def _aggregate(connection: Connection, view: str, query: str) -> None:
    run = connection.exec_driver_sql
    run(
        f"CREATE MATERIALIZED VIEW {view} WITH (timescaledb.continuous, timescaledb.materialized_only = false) "
        f"AS {query} WITH NO DATA"
    )
    job = connection.scalar(
        text(
            f"SELECT add_continuous_aggregate_policy('{view}', start_offset => {_REFRESHED_US}::bigint, "
            f"end_offset => {_DAY_US}::bigint, schedule_interval => interval '{_REFRESH_EVERY}')"
        )
    )
    # In one piece: what changed is little, while a century cut into pieces of ten buckets has millions of them.
    run(
        "SELECT alter_job(job_id, config => config || '{\"buckets_per_batch\": 0}') "
        f"FROM timescaledb_information.jobs WHERE job_id = {job}"
    )


def _longer_bars(timeframe: Timeframe, bucket: str, *, first: str, last: str) -> str:
    bases = ", ".join(f"'{base}'" for base in Timeframe if base.us < timeframe.us and not timeframe.us % base.us)
    return (
        f"SELECT instrument, timeframe AS base, {bucket} AS open_us, {first} AS open, max(high) AS high, "
        f"min(low) AS low, {last} AS close, CASE WHEN count(volume) = count(*) THEN sum(volume) END AS volume, "
        "sum(funding_rate) AS funding_rate, count(*) AS bars "
        f"FROM {_CURRENT} WHERE timeframe IN ({bases}) GROUP BY 1, 2, 3"
    )
