"""`tradeloop backfill` on a running stack: ingest itself fetches, over a bus in memory."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from libs.cli.tests.stacks import World
from tradeloop.cli.commands.fetch import fetch_on_stack
from tradeloop.cli.commands.repair import mend_on_stack
from tradeloop.cli.main import main
from tradeloop.cli.progress import Stages
from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.errors import UserError
from tradeloop.common.market import EVER_US, Instrument, Timeframe, TimeRange, Universe, to_us
from tradeloop.common.runtime.runner import Runner
from tradeloop.ingest.adapters.bus_frames import BusFrames
from tradeloop.ingest.adapters.files import read_blocks
from tradeloop.ingest.adapters.simulated_source import SimulatedSource
from tradeloop.ingest.adapters.sql_fetched import SqlFetched
from tradeloop.ingest.application import Ingest

NOW = datetime(2024, 3, 1, tzinfo=UTC)
COMMAND = ["backfill", "--source", "simulated", "--instrument", "BTC/USDT", "--timeframe", "1m", "--from", "2024-01-01"]


def universe(symbol: str = "BTC/USDT") -> Universe:
    return Universe(
        name="u",
        instruments=(Instrument(id=f"simulated:{symbol}"),),
        timeframe=Timeframe.M1,
        higher_timeframes=(Timeframe.H1,),
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tuple[World, MemoryBarStore]]:
    world = World()
    world.clock.advance((NOW - world.clock.now()) / timedelta(seconds=1))
    world.until_s = world.clock.monotonic() + 100
    store = MemoryBarStore(world.clock)
    ingest = Ingest(
        store,
        read_blocks,
        BusFrames(world.bus),
        world.clock,
        open_source=lambda _: SimulatedSource(world.clock),
        fetched=SqlFetched(f"sqlite:///{tmp_path}/fetched.db", world.clock),
        threaded=False,
    )
    runner = Runner(ingest, world.bus, world.clock)
    world.runners.append(runner)
    yield world, store
    runner.close()


def test_ingest_fetches_and_the_command_says_what_it_has(
    store: tuple[World, MemoryBarStore], capsys: pytest.CaptureFixture[str]
) -> None:
    world, bars = store
    start_us, end_us = to_us(NOW - timedelta(days=2)), to_us(NOW - timedelta(days=1))
    fetch_on_stack(world.stack, Stages(), universe(), (start_us, end_us))
    said = capsys.readouterr().out
    assert "the running stack has 1,440 1m bars from 2024-02-28 00:00 to 2024-02-29 00:00 UTC, 0 gaps" in said
    assert len(bars.read(universe().ids, Timeframe.M1, start_us, end_us)) == 1440
    assert len(bars.read(universe().ids, Timeframe.H1, start_us, end_us)) == 24
    fetch_on_stack(world.stack, Stages(), universe(), (start_us, EVER_US))
    assert "has 2,880 1m bars" in capsys.readouterr().out


def test_what_a_venue_refuses_is_a_line(store: tuple[World, MemoryBarStore]) -> None:
    world, bars = store
    with pytest.raises(UserError, match="did you mean BTC/USDT"):
        fetch_on_stack(world.stack, Stages(), universe("BTC-USDT"), (to_us(NOW - timedelta(days=2)), EVER_US))
    assert not bars.series()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["backfill", "--from", "2024-01-01"], "say what to fetch: --source, --instrument and --timeframe"),
        ([*COMMAND, "--universe", "u"], "leave --source and so on out"),
        (["backfill", "--from", "2024-01-01", "--universe", "u", "--stack", "embedded"], "are for a running stack"),
        ([*COMMAND, "--stack", "running", "--url", "http://127.0.0.1:1"], "in INGEST_SOURCES: leave --url out"),
        (["backfill", "--from", "2024-01-01", "--universe", "u", "--stack", "running"], "--portfolios FOLDER"),
    ],
)
def test_wrong_input_is_one_line(command: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_running_stack_mends_its_bars(
    store: tuple[World, MemoryBarStore], capsys: pytest.CaptureFixture[str]
) -> None:
    world, bars = store
    start, one = NOW - timedelta(days=2), Timeframe.M1
    ids, span_us = universe().ids, (to_us(start), to_us(NOW - timedelta(days=1)))
    fetch_on_stack(world.stack, Stages(), universe(), span_us)
    whole = bars.read(ids, one, *span_us)
    bars._bars[(ids[0], one)].pop(span_us[0] + 70 * one.us)
    capsys.readouterr()
    hole = TimeRange(start=start + 70 * one.delta, end=start + 71 * one.delta)
    mend_on_stack(world.stack, Stages(), universe(), {ids[0]: (hole,)})
    told = capsys.readouterr().out
    assert told.endswith(f"{ids[0]}, 2024-02-28 01:10:00: 1 bars added that were missing\n")
    assert (bars.read(ids, one, *span_us).close == whole.close).all()
