"""`tradeloop ingest live`: what it asks of ingest, over a bus in memory, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from libs.cli.tests.stacks import World
from tradeloop.cli.commands.ingest import ask_for_feed
from tradeloop.cli.main import main
from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.errors import UserError
from tradeloop.common.market import Instrument, Timeframe, Universe
from tradeloop.common.messages import BarFrame, LiveRequested
from tradeloop.common.runtime.readback import all_messages
from tradeloop.common.runtime.runner import Runner
from tradeloop.ingest.adapters.bus_frames import BusFrames
from tradeloop.ingest.adapters.files import read_blocks
from tradeloop.ingest.adapters.simulated_source import SimulatedSource
from tradeloop.ingest.application import Ingest

NOW = datetime(2024, 3, 1, tzinfo=UTC)
FED = Universe(name="u", instruments=(Instrument(id="simulated:BTC/USDT"),), timeframe=Timeframe.M1)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    world.clock.advance((NOW - world.clock.now()) / timedelta(seconds=1))
    world.until_s = world.clock.monotonic() + 1_000
    ingest = Ingest(
        MemoryBarStore(world.clock),
        read_blocks,
        BusFrames(world.bus),
        world.clock,
        open_source=lambda _: SimulatedSource(world.clock),
        threaded=False,
    )
    runner = Runner(ingest, world.bus, world.clock)
    world.runners.append(runner)
    yield world
    runner.close()


def test_a_feed_with_trades_and_books_brings_their_columns(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    ask_for_feed(world.stack, FED, ("bars", "trades", "books"), None, stop=False)
    assert "live feed of u: started" in capsys.readouterr().out
    [request] = all_messages(world.bus, LiveRequested)
    assert request.channels == ("bars", "trades", "books")

    def whole() -> list[BarFrame]:
        return [frame for frame in all_messages(world.bus, BarFrame) if frame.bars and frame.bars[0].extra]

    while not whole():
        world.wait(0.5)
    columns = whole()[0].bars[0].extra
    assert {"trade_count", "vwap", "order_flow_imbalance", "spread_mean"} <= columns.keys()
    ask_for_feed(world.stack, FED, ("bars",), None, stop=True)
    assert "live feed of u: stopped" in capsys.readouterr().out


def test_a_channel_that_the_venue_does_not_have_is_one_line(world: World) -> None:
    with pytest.raises(UserError, match="news"):
        ask_for_feed(world.stack, FED, ("bars", "news"), None, stop=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--channels", "bars,ticks"], "--channels: there is no channel ticks; give some of bars, trades, books, news"),
        (["--channels", ""], "--channels: there is no channel ''"),
        (["--channels", "trades"], "--channels: a feed needs bars"),
        (["--channels", "bars,trades", "--stop"], "--channels is for one that begins"),
        (["--since", "2024-01-01", "--stop"], "--since begins one"),
        (["--channels", "bars,books"], "say what to replay: either --portfolio"),
    ],
)
def test_wrong_input_is_one_line(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", "live", *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
