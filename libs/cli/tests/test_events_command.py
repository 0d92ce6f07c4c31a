"""`--events`: halts, delistings and new symbols, from the command line to the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from libs.cli.tests.test_members_command import DAYS, EXAMPLE, bars_of, day
from tradeloop.cli.adjusting import adjusted_view
from tradeloop.cli.client.books import book_states
from tradeloop.cli.commands.book import _described, _line
from tradeloop.cli.events import renamed, with_events
from tradeloop.cli.main import main
from tradeloop.cli.source import Source, open_source
from tradeloop.cli.understood import understood
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.errors import UserError
from tradeloop.common.market import InstrumentEvent
from tradeloop.common.market.event_file import read_events
from tradeloop.common.messages import InstrumentChanged, PortfolioMarked
from tradeloop.common.messages.topics import specs
from tradeloop.common.runtime.publish import publish


def events(folder: Path, *rows: str) -> Path:
    path = folder / "events.csv"
    path.write_text("\n".join(["instrument,time,kind,proceeds,symbol", *rows, ""]))
    return path


def files(folder: Path) -> list[str]:
    """One that is halted, one that is delisted, and one in two files by its symbols."""
    bars_of(folder / "AAA.csv", 0, DAYS, 1)
    bars_of(folder / "BBB.csv", 0, 620, 2)
    bars_of(folder / "FB.csv", 0, 560, 3)
    bars_of(folder / "META.csv", 560, DAYS, 3)
    return [f"{name}={folder / name}.csv" for name in ("AAA", "BBB", "FB", "META")]


ROWS = (
    f"AAA,{day(630)}T12:00Z,halt,,",
    f"AAA,{day(645)}T00:00Z,resume,,",
    f"BBB,{day(620)}T00:00Z,delisting,1.5,",
    f"FB,{day(560)}T00:00Z,rename,,META",
)


def source_of(folder: Path, *rows: str, bars: list[str] | None = None) -> Source:
    file = read_events(events(folder, *rows))
    given = files(folder) if bars is None else bars
    source = open_source(
        given, EXAMPLE, name="trio", members_change=True, joins=lambda named, ids: renamed(named, file, ids)
    )
    return with_events(source, file)


def test_a_demo_halts_closes_and_joins_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [part for one in files(tmp_path) for part in ("--bars", one)]
    options += ["--events", str(events(tmp_path, *ROWS)), "--name", "trio"]
    out, home = tmp_path / "out", tmp_path / "home"
    assert main(["demo", *options, "--home", str(home), "--steps", "512", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "Events of 3 instruments: 1 delisting, 1 halt, 1 rename" in said.err
    assert "file:META: FB becomes META on" in said.err
    assert "2 files are joined: FB.csv, META.csv" in said.err
    assert "Backtest equals live to 0.0e+00" in said.out
    assert "Targets of instruments that were not traded then" in said.out
    summary = json.loads((out / "summary.json").read_text())
    assert [(one["instrument"], one["kind"]) for one in summary["events"]] == [
        ("file:META", "rename"),
        ("file:BBB", "delisting"),
        ("file:AAA", "halt"),
    ]
    fills = pl.read_csv(out / "fills.csv")
    closing = fills.filter(pl.col("reason") == "delisting")
    for one in summary["events"]:
        if one["kind"] == "delisting" and one["fill_id"]:
            assert closing["fill_id"].to_list() == [one["fill_id"]]
            assert (closing["price"][0], closing["fee"][0], closing["time"][0][:10]) == (1.5, 0.0, day(620))
    traded = fills.filter(pl.col("instrument") == "file:AAA")["time"].to_list()
    assert not [one for one in traded if day(631) <= one[:10] < day(645)]
    assert fills.filter(pl.col("instrument") == "file:META").height > 0
    assert "Events of instruments" in (out / "report.html").read_text()
    assert main(["backtest", *options, "--home", str(home), "--out", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "summary.json").read_text())["events"]
    closed = next(one for one in again if one["kind"] == "delisting")
    assert pl.read_csv(tmp_path / "again" / "fills.csv").filter(pl.col("reason") == "delisting").height == bool(
        closed["closed"]
    )


def test_two_symbols_are_one_series(tmp_path: Path) -> None:
    source = source_of(tmp_path, *ROWS)
    assert source.universe.ids == ("file:AAA", "file:BBB", "file:META")
    whole = open_source([f"one={bars_of(tmp_path / 'whole.csv', 0, DAYS, 3)}"], EXAMPLE, name="whole").history
    a = source.universe.ids.index("file:META")
    for column in ("open", "high", "low", "close", "volume"):
        np.testing.assert_array_equal(getattr(source.history, column)[:, a], getattr(whole, column)[:, 0])


def test_what_the_events_mean_is_said(tmp_path: Path) -> None:
    rows = (f"AAA,{day(DAYS + 5)}T00:00Z,halt,,", f"BBB,{day(600)}T00:00Z,delisting,0,", f"ZZZ,{day(1)}T00:00Z,halt,,")
    said = "\n".join(understood(source_of(tmp_path, *rows, bars=files(tmp_path)[:2])))
    assert "1 event after the last bar without effect: file:AAA" in said
    assert "Events of ZZZ in events.csv not used: no bars of them are here" in said
    assert "Warning: 20 bars after a delisting, not traded: file:BBB" in said
    last = "\n".join(understood(source_of(tmp_path, f"AAA,{day(DAYS)}T00:00Z,delisting,3,", bars=files(tmp_path)[:1])))
    assert f"Warning: no bar follows the delisting of file:AAA on {day(DAYS)}" in last


def test_bars_that_are_missing_in_a_halt_are_no_gaps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = bars_of(tmp_path / "AAA.csv", 0, 100, 1)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:40], *lines[50:], ""]))
    file = events(tmp_path, f"AAA,{day(39)}T00:00Z,halt,,", f"AAA,{day(49)}T00:00Z,resume,,")
    check = ["bars", "check", str(path), "--calendar", "continuous"]
    assert main(check) == 1
    assert "1 gap" in capsys.readouterr().out
    assert main([*check, "--events", str(file)]) == 0
    assert "no faults" in capsys.readouterr().out
    other = events(tmp_path, f"BBB,{day(39)}T00:00Z,halt,,")
    assert main([*check, "--events", str(other)]) == 1
    assert "has no events of it, which are of BBB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["DDD,2020-01-01T00:00Z,halt,,"], "has events of DDD, and the bars are of file:AAA, file:BBB"),
        (["AAA,2020-01-01T00:00Z,halt,,", "aaa,2020-01-02T00:00Z,halt,,"], "AAA and aaa are both file:AAA"),
        (["AAA,2020-03-01T00:00Z,rename,,BBB"], "2020-01-01.* is in both|AAA.csv and .*BBB.csv"),
    ],
)
def test_a_file_that_fits_no_bars_is_refused(tmp_path: Path, rows: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        source_of(tmp_path, *rows, bars=files(tmp_path)[:2])


def test_events_do_not_go_with_what_contradicts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bars = files(tmp_path)
    file = events(tmp_path, ROWS[2])
    demo = ["demo", "--bars", bars[1], "--events", str(file), "--out", str(tmp_path / "out")]
    assert main([*demo, "--also", bars[0]]) == 2
    assert "--events is of one universe, and --also adds others" in capsys.readouterr().err
    assert main(["demo", "--source", "simulated", "--events", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "--events is of files of bars, and --source simulated trades live" in capsys.readouterr().err
    actions = tmp_path / "actions.csv"
    actions.write_text(f"instrument,ex_date,kind,value\nBBB,{day(200)},dividend,1\n")
    view = adjusted_view(open_source(bars[1:2], EXAMPLE, name="one"), actions, None, named=True)
    with pytest.raises(UserError, match="--actions adjusts prices, and the proceeds of a delisting"):
        with_events(view, read_events(file))


def test_a_book_says_what_is_in_force() -> None:
    bus = MemoryBus()
    bus.create_topics(specs({}))
    mark = PortfolioMarked.model_validate(
        {
            "universe": "u",
            "portfolio": "book",
            "time": "2024-06-10T12:00:00Z",
            "cash": 1.0,
            "equity": 1.0,
            "peak_equity": 1.0,
            "drawdown": 0.0,
            "state": "active",
            "positions": [],
        }
    )
    publish(bus.producer(), mark, "test")
    for name, kind, hour, more in (
        ("x:A", "halt", 9, {}),
        ("x:A", "resume", 10, {}),
        ("x:B", "halt", 9, {}),
        ("x:B", "halt", 9, {}),  # it comes again
        ("x:C", "rename", 8, {"symbol_before": "OLD", "symbol": "C"}),
        ("x:C", "delisting", 11, {"proceeds": 0.25}),
    ):
        event = InstrumentEvent.model_validate({"time": f"2024-06-10T{hour:02}:00:00Z", "kind": kind, **more})
        publish(bus.producer(), InstrumentChanged(universe="u", instrument=name, event=event), "test")
    book = book_states(bus)["book"]
    assert book.instruments == {
        "x:B": ["trading is halted since 2024-06-10 09:00 UTC"],
        "x:C": ["OLD becomes C since 2024-06-10 08:00 UTC", "delisted at 0.25 a unit since 2024-06-10 11:00 UTC"],
    }
    assert "; x:B: trading is halted since 2024-06-10 09:00 UTC; x:C: OLD becomes C" in _line(book)
    assert _described(book)["instruments"] == book.instruments
