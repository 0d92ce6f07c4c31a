"""The contract of `EventStore`, for every adapter."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tradeloop.common.contracts.event_store import MakeEventStore
from tradeloop.common.event_store.memory import MemoryEventStore
from tradeloop.common.event_store.port import EventStoreUnavailable
from tradeloop.common.event_store.sql import SCHEMA, SqlEventStore
from tradeloop.common.sql.migrations import migrate
from tradeloop.common.testing import EVENT_STORE_CHECKS, check_event_store


@pytest.fixture(params=["memory", "sqlite"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeEventStore:
    store = MemoryEventStore()
    return (lambda: store) if request.param == "memory" else lambda: SqlEventStore(f"sqlite:///{tmp_path}/e.db")


@pytest.mark.parametrize("check", EVENT_STORE_CHECKS, ids=lambda check: check.__name__)
def test_stores_keep_the_contract(check: Callable[[MakeEventStore], None], make_store: MakeEventStore) -> None:
    check(make_store)
    check_event_store(make_store)


@pytest.mark.parametrize("check", EVENT_STORE_CHECKS, ids=lambda check: check.__name__)
def test_the_store_in_postgresql_keeps_the_contract(
    check: Callable[[MakeEventStore], None], plain_database: str
) -> None:
    with (
        closing(SqlEventStore(plain_database)) as early,
        pytest.raises(EventStoreUnavailable, match="it has no tables yet; run: tradeloop db migrate"),
    ):
        early.check()
    migrate(plain_database, SCHEMA)
    check(lambda: SqlEventStore(plain_database))


def test_a_store_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    with (
        closing(SqlEventStore(f"sqlite:///{tmp_path / 'no' / 'e.db'}")) as store,
        pytest.raises(EventStoreUnavailable, match="unable to open"),
    ):
        store.check()
