"""The bus contract for every adapter, and what each adapter promises beyond it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tradeloop.common.bus import Bus
from tradeloop.common.kafka import KafkaBus, KafkaSettings
from tradeloop.common.memory import MemoryBus
from tradeloop.common.testing import BUS_CHECKS, check_bus

FAST = {"heartbeat.interval.ms": "100"}  # members learn of a rebalance sooner than production needs

ADAPTERS: dict[str, Callable[[pytest.FixtureRequest], Bus]] = {
    "memory": lambda request: MemoryBus(),
    "kafka": lambda request: KafkaBus(KafkaSettings(bootstrap_servers=request.getfixturevalue("kafka"), extra=FAST)),
}


@pytest.mark.parametrize("check", BUS_CHECKS, ids=lambda check: check.__name__.strip("_"))
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_contract(adapter: str, check: Callable[[Bus], None], request: pytest.FixtureRequest) -> None:
    check(ADAPTERS[adapter](request))


def test_check_bus_runs_every_check() -> None:
    made: list[MemoryBus] = []

    def make_bus() -> Bus:
        made.append(MemoryBus())
        return made[-1]

    check_bus(make_bus)
    assert len(made) == len(BUS_CHECKS)
