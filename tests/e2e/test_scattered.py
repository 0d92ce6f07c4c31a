"""The loop over a bus that stores messages late and in any order of topics, whose services die meanwhile."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from tests.e2e.test_crashes import LEDGER
from tests.e2e.test_parity import Loop, Market, assert_parity, expect
from tests.scattered import ScatteredBus, ScatteredProducer
from tradeloop.common.runtime.runner import Runner

OFTEN = {"ingest": 0.2, "preprocess": 0.05, "inference": 0.05, "execution": 0.05}
"""How often a turn of each service is its last one."""


class Scattered(Loop):
    """A loop whose services may die after any turn, with messages under way."""

    bus: ScatteredBus

    def __init__(self, market: Market, seed: int) -> None:
        self._producers: dict[str, ScatteredProducer] = {}
        self._generator = np.random.default_rng(seed)
        self.kills = self.lost = 0
        super().__init__(market, bus=ScatteredBus(seed))

    def _start(self, name: str) -> Runner:
        runner = super()._start(name)
        self._producers[name] = self.bus.newest
        return runner

    def run_and_kill(self, often: Mapping[str, float]) -> Scattered:
        """Run to the end; each turn of a service may be its last one."""
        quiet = 0
        while quiet < 10:
            quiet += 1
            for name in list(self.runners):
                if self.runners[name].step():
                    quiet = 0
                    if self._generator.random() < often[name]:
                        self.kills += 1
                        self.lost += self._producers[name].die()
                        self.restart(name, killed=True)
            self._clock.advance(1.0)
        return self


@pytest.fixture(params=[(1, False), (4, True), (4, False, True)], ids=["one", "members", "events"], scope="module")
def whole(request: pytest.FixtureRequest) -> Loop:
    return Loop(Market(*request.param)).run()


@pytest.mark.parametrize("seed", range(4))
def test_killed_with_messages_under_way_nothing_changes(whole: Loop, seed: int) -> None:
    loop = Scattered(whole.market, seed).run_and_kill(OFTEN)
    for kind in LEDGER:
        assert loop.read(kind) == whole.read(kind), kind.__name__
    assert_parity(loop, expect(loop))
    assert (loop.kills > 10, loop.lost > 10) == (True, True)
