"""`tradeloop db`: what it tells, and its exit codes."""

from __future__ import annotations

import pytest

from tests.servers import tier_of
from tradeloop.cli.main import main


def test_both_databases_are_migrated_and_told_about(
    database: str, plain_database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRADELOOP_DATABASE_URL", database)
    monkeypatch.setenv("TRADELOOP_LEDGER_URL", plain_database)
    assert main(["db", "status"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "bars: version none on postgresql; 0001 is needed, run: tradeloop db migrate",
        "ledger: version none on postgresql; 0001 is needed, run: tradeloop db migrate",
    ]
    bars = f"bars: version 0001 on timescaledb-{tier_of(database)}"
    ledger = "ledger: version 0001 on postgresql"
    assert main(["db", "migrate"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{bars}, new", f"{ledger}, new"]
    assert main(["db", "migrate"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{bars}, as it was", f"{ledger}, as it was"]
    assert main(["db", "status"]) == 0
    assert capsys.readouterr().out.splitlines() == [bars, ledger]


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
