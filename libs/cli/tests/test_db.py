"""`tradeloop db`: what it tells, and its exit codes."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from tests.servers import tier_of
from tradeloop.cli.main import main
from tradeloop.common.clock import SystemClock
from tradeloop.common.event_store.sql import SqlEventStore
from tradeloop.common.market import EVER_US, from_us, to_us
from tradeloop.common.messages import MarketTrade
from tradeloop.execution.adapters.sql_ledger import SqlLedger
from tradeloop.execution.contracts import sample_order
from tradeloop.execution.ports import Change, Effects
from tradeloop.execution.record import BookRecord


def test_both_databases_are_migrated_and_told_about(
    database: str, plain_database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRADELOOP_DATABASE_URL", database)
    monkeypatch.setenv("TRADELOOP_LEDGER_URL", plain_database)
    assert main(["db", "status"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "bars: version none on postgresql; 0002 is needed, run: tradeloop db migrate",
        "fetched: version none on postgresql; 0001 is needed, run: tradeloop db migrate",
        "events: version none on postgresql; 0001 is needed, run: tradeloop db migrate",
        "ledger: version none on postgresql; 0003 is needed, run: tradeloop db migrate",
    ]
    bars = f"bars: version 0002 on timescaledb-{tier_of(database)}"
    beside = [f"{name}: version 0001 on postgresql" for name in ("fetched", "events")]
    ledger = "ledger: version 0003 on postgresql"
    assert main(["db", "migrate"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{one}, new" for one in (bars, *beside, ledger)]
    assert main(["db", "migrate"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{one}, as it was" for one in (bars, *beside, ledger)]
    assert main(["db", "status"]) == 0
    assert capsys.readouterr().out.splitlines() == [bars, *beside, ledger]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "no database is named: give --bars-url or TRADELOOP_DATABASE_URL"),
        (["--bars-url", "sqlite:///bars.db"], 2, "needs no migration"),
        (["--bars-url", "postgres"], 2, "give sqlite:///FILE or postgresql+psycopg://"),
        (["--ledger-url", "postgresql+psycopg://me:swordfish@127.0.0.1:9/x"], 1, "me:***@127.0.0.1:9/x: connection"),
    ],
)
def test_what_cannot_be_migrated_is_said_in_one_line(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["db", "migrate", *arguments]) == code
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert "swordfish" not in line


def test_the_ledger_is_pruned_by_the_time_of_its_own_bars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    with closing(SqlLedger(url)) as ledger:
        ledger.check()
    assert main(["db", "prune", "--ledger-url", url, "--older-than", "400d"]) == 0
    assert capsys.readouterr().out.splitlines() == ["the ledger has no books: nothing was deleted"]
    order = sample_order().model_copy(update={"status": "expired"})
    after = BookRecord(revision=1, marked_us=to_us(order.decision_time) + 2 * 86_400_000_000)
    with closing(SqlLedger(url)) as ledger:
        ledger.record([Change("p", BookRecord(), after, {"in-1": Effects(orders=[order])})])
    for age, count in (("2d", 0), ("1d", 1), ("1d", 0)):
        assert main(["db", "prune", "--ledger-url", url, "--older-than", age]) == 0
        day = 3 - int(age[0])
        said = f"p: {count} orders and 0 fills from before 2026-01-0{day} 01:00 UTC deleted"
        assert capsys.readouterr().out.splitlines() == [said]


def test_old_trades_books_and_news_are_pruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path}/bars.db"
    now_us = to_us(SystemClock().now())
    with closing(SqlEventStore(url)) as store:
        for days in (1, 3, 5):
            time = from_us(now_us - days * 86_400_000_000)
            store.write([MarketTrade(instrument="x:A", id="1", time=time, price=1.0, size=1.0)])
    for count in (2, 0):
        assert main(["db", "prune", "--bars-url", url, "--events-older-than", "2d"]) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"{count} trades, 0 states of order books and 0 pieces of news from before ")
    with closing(SqlEventStore(url)) as store:
        assert len(store.trades("x:A", 0, EVER_US)) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing is named: give --older-than"),
        (["--older-than", "1d"], "--older-than needs the ledger"),
        (["--events-older-than", "1d"], "--events-older-than needs the bars' database"),
        (["--bars-url", "sqlite:///no/such/x.db", "--events-older-than", "1d"], "there is no file no/such/x.db"),
        (["--ledger-url", "sqlite:///no/such/folder/x.db", "--older-than", "400"], "--older-than 400: give a number"),
        (["--ledger-url", "sqlite:///no/such/folder/x.db", "--older-than", "0d"], "--older-than 0d: give a number"),
        (
            ["--ledger-url", "sqlite:///no/such/folder/x.db", "--older-than", "1d"],
            "there is no file no/such/folder/x.db",
        ),
        (["--ledger-url", "ledger", "--older-than", "1d"], "give sqlite:///FILE or postgresql+psycopg://"),
    ],
)
def test_what_cannot_be_pruned_is_said_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["db", "prune", *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
