"""Migrations of PostgreSQL: once, together or not at all, and stores that say when one is lacking."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import MetaData, create_engine, make_url
from structlog.testing import capture_logs

from tests.tiers import database_for, execute
from tests.waiting import PATIENCE_S
from tradeloop.common.bar_store.port import BarStoreUnavailable
from tradeloop.common.bar_store.sql import SCHEMA, SqlBarStore, StorageTier
from tradeloop.common.bar_store.sql.table import BARS
from tradeloop.common.clock import ManualClock
from tradeloop.common.errors import UserError
from tradeloop.common.market import BarArrays, Timeframe, align
from tradeloop.common.sql.engine import Schema
from tradeloop.common.sql.migrations import MigrationFailed, State, current, migrate
from tradeloop.execution.adapters.ledger_versions import SCHEMA as LEDGER
from tradeloop.execution.adapters.sql_ledger import metadata as ledger_tables

PASSWORD = "swordfish"
CLOCK = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
POSTGRESQL_TIERS = [tier for tier in StorageTier if tier is not StorageTier.SQLITE]
HOUR = Timeframe.H1.us


def minutes(count: int, start: int = 0, price: float = 100.0) -> BarArrays:
    """Bars of one instrument, all different."""
    base = (price + np.arange(count) % 17).astype(np.float64)
    times = (start + np.arange(count, dtype=np.int64)) * Timeframe.M1.us
    columns = {"open": base, "high": base + 1, "low": base - 1, "close": base + 0.5, "volume": base}
    return align(["x:A"], Timeframe.M1, [{"open_us": times, **columns}])


@pytest.mark.parametrize("schema", [SCHEMA, LEDGER], ids=lambda schema: str(schema.name))
def test_migrating_again_changes_nothing(plain_database: str, schema: Schema) -> None:
    assert current(plain_database, schema) == State(None, "postgresql")
    assert migrate(plain_database, schema) == (State(None, "postgresql"), State(schema.head, "postgresql"))
    assert migrate(plain_database, schema) == (State(schema.head, "postgresql"),) * 2
    assert current(plain_database, schema) == State(schema.head, "postgresql")


@pytest.mark.parametrize(
    ("schema", "tables"), [(SCHEMA, BARS.metadata), (LEDGER, ledger_tables)], ids=lambda one: getattr(one, "name", "")
)
def test_migrations_make_the_tables_that_the_code_declares(
    plain_database: str, schema: Schema, tables: MetaData
) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    migrate(plain_database, schema)
    engine = create_engine(plain_database)
    with engine.connect() as connection:
        options = {"version_table": f"{schema.name}_version", "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), tables) == []
    engine.dispose()
    assert ScriptDirectory(str(schema.versions), version_locations=[str(schema.versions)]).get_heads() == [schema.head]


def test_both_schemas_fit_into_one_database(plain_database: str) -> None:
    migrate(plain_database, SCHEMA)
    assert migrate(plain_database, LEDGER)[0].version is None
    assert (current(plain_database, SCHEMA).version, current(plain_database, LEDGER).version) == (
        SCHEMA.head,
        LEDGER.head,
    )


MIGRATE = """
import sys
from tradeloop.common.sql.migrations import migrate
from tradeloop.common.bar_store.sql import SCHEMA
print("ready", flush=True)
sys.stdin.read(1)
print(migrate(sys.argv[1], SCHEMA)[0].version)
"""


def test_of_two_migrators_at_once_one_does_it(database: str) -> None:
    command = [sys.executable, "-c", MIGRATE, database]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for one in both:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    told = [one.communicate("x", timeout=PATIENCE_S) for one in both]
    assert [one.returncode for one in both] == [0, 0], told
    assert sorted(out for out, _ in told) == [f"{SCHEMA.head}\n", "None\n"]


def test_a_migration_that_fails_leaves_nothing(plain_database: str) -> None:
    def fail(connection: object) -> None:
        raise ValueError("not this time")

    with pytest.raises(ValueError, match="not this time"):
        migrate(plain_database, replace(SCHEMA, improve=fail))
    assert execute(plain_database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == []
    assert migrate(plain_database, SCHEMA)[0].version is None


def test_a_store_waits_for_the_migration(plain_database: str) -> None:
    store = SqlBarStore(plain_database, CLOCK)
    with pytest.raises(BarStoreUnavailable, match="it has no tables yet; run: tradeloop db migrate"):
        store.read(["x:A"], Timeframe.M1, 0, HOUR)
    migrate(plain_database, SCHEMA)
    with capture_logs() as logs:
        store.write(Timeframe.M1, minutes(3))
        assert len(store.read(["x:A"], Timeframe.M1, 0, HOUR)) == 3
    assert [(entry["event"], entry["storage"]) for entry in logs] == [("bar store", "postgresql")]
    store.close()


def test_a_store_is_refused_older_tables_and_takes_newer_ones(plain_database: str) -> None:
    migrate(plain_database, SCHEMA)
    execute(plain_database, "UPDATE bars_version SET version_num = '0000'")
    store = SqlBarStore(plain_database, CLOCK)
    with pytest.raises(BarStoreUnavailable, match="its tables have version 0000, 0002 is needed; run: tradeloop db"):
        store.write(Timeframe.M1, minutes(1))
    execute(plain_database, "UPDATE bars_version SET version_num = '9999'")
    store.write(Timeframe.M1, minutes(1))
    assert migrate(plain_database, SCHEMA)[1].version == "9999"
    store.close()


def test_no_password_is_told(plain_database: str) -> None:
    wrong = make_url(plain_database).set(username="nobody", password=PASSWORD)
    away = wrong.set(port=9).update_query_dict({"options": f"-cx.y={PASSWORD}"})
    told = []
    for url in (wrong, away):
        text = url.render_as_string(hide_password=False)
        store = SqlBarStore(text, CLOCK)
        with pytest.raises(BarStoreUnavailable, match="postgresql") as unavailable:
            store.read([], Timeframe.M1, 0, 1)
        with pytest.raises(MigrationFailed, match="postgresql") as failed:
            migrate(text, SCHEMA)
        told += [unavailable.value, failed.value]
    with pytest.raises(UserError, match="postgresql") as refused:
        SqlBarStore(f"postgresql+pg8000://me:{PASSWORD}@host/x", CLOCK)
    assert [error for error in [*told, refused.value] if PASSWORD in str(error)] == []


def test_sqlite_needs_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs no migration"):
        migrate(f"sqlite:///{tmp_path}/bars.db", SCHEMA)
    assert list(tmp_path.iterdir()) == []


# Storage tiers


@pytest.fixture(params=POSTGRESQL_TIERS)
def tiered(request: pytest.FixtureRequest) -> Iterator[tuple[str, StorageTier]]:
    """A migrated database, and its tier."""
    with database_for(request, request.param) as url:
        migrate(url, SCHEMA)
        yield url, request.param


def test_the_tier_is_named(tiered: tuple[str, StorageTier]) -> None:
    url, tier = tiered
    assert current(url, SCHEMA).tier == tier
    store = SqlBarStore(url, CLOCK)
    with capture_logs() as logs:
        assert store.tier is tier
    assert [entry["storage"] for entry in logs] == [tier]
    store.close()


def refresh(url: str) -> None:
    """What the server does by itself every ten minutes, for those views that are stored."""
    jobs = "SELECT job_id FROM timescaledb_information.jobs WHERE proc_name LIKE '%continuous_aggregate' ORDER BY 1"
    for (job,) in execute(url, jobs):
        execute(url, f"CALL run_job({job})")


def compress(url: str) -> None:
    """What the server does with what is old; before that nothing is compressed at all."""
    assert execute(url, "SELECT count(compress_chunk(chunk)) FROM show_chunks('bars') AS chunk") != [(0,)]


def views(url: str) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    longer = "SELECT base, open_us, open, high, low, close, volume, funding_rate, bars FROM bars_1h ORDER BY open_us"
    current = "SELECT open_us, revision, close FROM bars_current WHERE revision > 0 ORDER BY open_us"
    return execute(url, longer), execute(url, current)


def test_views_of_longer_bars_follow_a_revision(tiered: tuple[str, StorageTier]) -> None:
    url, tier = tiered
    store = SqlBarStore(url, CLOCK)
    store.write(Timeframe.M1, minutes(120, start=-60))
    store.write(Timeframe.M1, minutes(10, start=60))
    hours: list[tuple[object, ...]] = [
        # minutes of a price of 100 + n % 17
        ("1m", -HOUR, 100.0, 117.0, 99.0, 108.5, float(sum(100 + n % 17 for n in range(60))), 0.0, 60),
        ("1m", 0, 109.0, 117.0, 99.0, 100.5, float(sum(100 + n % 17 for n in range(60, 120))), 0.0, 60),
        ("1m", HOUR, 100.0, 110.0, 99.0, 109.5, float(sum(100 + n % 17 for n in range(10))), 0.0, 10),
    ]
    assert views(url) == (hours, [])
    if tier is StorageTier.COMMUNITY:
        refresh(url)
        compress(url)
        assert views(url) == (hours, [])

    # The bar that was highest and first becomes the lowest, and its volume is no longer known.
    unknown = align(["x:A"], Timeframe.M1, [{k: v for k, v in series(minutes(1, price=7.0)).items() if k != "volume"}])
    store.write(Timeframe.M1, unknown, revision=1)
    if tier is StorageTier.COMMUNITY:
        assert views(url)[0] == hours
        refresh(url)
    hours[1] = ("1m", 0, 7.0, 117.0, 6.0, 100.5, None, 0.0, 60)
    assert views(url) == (hours, [(0, 1, 7.5)])
    # Also far back in time, where nothing was before.
    store.write(Timeframe.M1, minutes(60, start=-60 * 24 * 365))
    if tier is StorageTier.COMMUNITY:
        refresh(url)
    assert [row[1:3] for row in views(url)[0]] == [(-HOUR * 24 * 365, 100.0), *(hour[1:3] for hour in hours)]
    store.close()


def series(bars: BarArrays) -> dict[str, np.ndarray]:
    return {name: getattr(bars, name)[:, 0] for name in ("open", "high", "low", "close", "volume")} | {
        "open_us": bars.open_us
    }


def test_every_longer_timeframe_has_a_view(tiered: tuple[str, StorageTier]) -> None:
    url, _ = tiered
    store = SqlBarStore(url, CLOCK)
    store.write(Timeframe.M1, minutes(2 * 24 * 60))
    store.write(Timeframe.M5, align(["x:A"], Timeframe.M5, [series(minutes(1))]))
    for timeframe in (Timeframe.M5, Timeframe.M15, Timeframe.H1, Timeframe.H4, Timeframe.D1):
        rows = execute(url, f"SELECT base, bars FROM bars_{timeframe} ORDER BY base, open_us")
        of_minutes = [("1m", timeframe.seconds // 60)] * (2 * 24 * 3600 // timeframe.seconds)
        assert rows == of_minutes + ([("5m", 1)] if timeframe is not Timeframe.M5 else [])
    store.close()


def test_bars_of_seconds_are_each_there(tiered: tuple[str, StorageTier]) -> None:
    url, _ = tiered
    store = SqlBarStore(url, CLOCK)
    one = series(minutes(90))
    store.write(Timeframe.S1, align(["x:A"], Timeframe.S1, [one | {"open_us": one["open_us"] // 60}]))
    store.close()
    assert execute(url, "SELECT count(*), max(open_us) FROM bars_current") == [(90, 89 * Timeframe.S1.us)]
    assert execute(url, "SELECT bars FROM bars_5m") == [(90,)]


def test_bars_written_again_pass_compressed_ones(tiered: tuple[str, StorageTier]) -> None:
    """More of them than TimescaleDB decompresses for one statement by itself."""
    url, tier = tiered
    store = SqlBarStore(url, CLOCK)
    bars = minutes(110_000)
    store.write(Timeframe.M1, bars)
    if tier is StorageTier.COMMUNITY:
        compress(url)
    for part in (bars, bars.slice(5, 105_000), bars.slice(7, 17)):
        store.write(Timeframe.M1, part)
    store.write(Timeframe.M1, minutes(2_000, start=109_000, price=50.0))
    assert execute(url, "SELECT count(*) FROM bars") == [(111_000,)]
    found = store.read(["x:A"], Timeframe.M1, 0, 2**62)
    np.testing.assert_array_equal(found.close[:110_000], bars.close)
    store.close()


def test_a_database_rises_with_its_server(database: str) -> None:
    """Its bars and views stay what they are."""
    execute(database, "DROP EXTENSION IF EXISTS timescaledb")
    role = f"plain_{make_url(database).database}"
    execute(database, f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'", f"GRANT ALL ON SCHEMA public TO {role}")
    plain = make_url(database).set(username=role, password=PASSWORD).render_as_string(hide_password=False)
    try:
        with capture_logs() as logs:
            assert migrate(plain, SCHEMA)[1].tier == StorageTier.POSTGRESQL
        assert [entry["event"] for entry in logs] == ["TimescaleDB stays unused"]
        store = SqlBarStore(plain, CLOCK)
        store.write(Timeframe.M1, minutes(5_000))
        store.close()
        before = views(database)

        execute(database, f"REASSIGN OWNED BY {role} TO CURRENT_USER")
        was, now = migrate(database, SCHEMA)
        assert was == State(SCHEMA.head, StorageTier.POSTGRESQL)
        assert now.tier in (StorageTier.APACHE, StorageTier.COMMUNITY)
        assert views(database) == before
        assert migrate(database, SCHEMA) == (now, now)
        assert execute(database, "SELECT count(*) FROM show_chunks('bars')") != [(0,)]
    finally:
        execute(database, f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}")
