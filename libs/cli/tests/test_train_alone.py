"""`tradeloop train --no-wait`: what it asks for is what it asks for when it waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tradeloop.cli.client.client import Client
from tradeloop.cli.commands.train import ask_alone
from tradeloop.cli.main import main
from tradeloop.cli.markets import learnt
from tradeloop.cli.progress import Stages
from tradeloop.cli.source import open_source
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.clock import SystemClock
from tradeloop.common.messages import TrainingRequested
from tradeloop.common.messages.topics import specs
from tradeloop.common.strategy import load


def test_every_seed_is_asked_for_and_nobody_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    strategy, bus = load("example"), MemoryBus()
    bus.create_topics(specs({}))
    source = open_source((), strategy)
    client = Client(bus, SystemClock(), print)
    ask_alone(client, Stages(), learnt(source, len(source.bars), strategy), strategy, range(3), 64, promote=True)
    asked = client.read(TrainingRequested)
    assert sorted(each.seed for each in asked) == [0, 1, 2]
    assert {(each.steps, each.promote, each.universe.name) for each in asked} == {(64, True, source.universe.name)}
    assert len({each.request_id for each in asked}) == 3
    said = capsys.readouterr().err
    assert f"Asked for 3 policies of example on {source.universe.name}" in said
    client.close()


def test_who_trains_in_one_process_waits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "--no-wait", "--stack", "embedded", "--home", str(tmp_path / "home")]) == 2
    assert "--no-wait is for a running stack" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()
