"""An hour of bars at high speed with random faults: memory stays flat, what is stored grows as documented.

`make soak` runs it, MINUTES= long; it is too long for the tests of every change.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from sqlalchemy import create_engine, text

from tests.e2e.stack import Servers, Stack
from tests.e2e.test_five_processes import register
from tests.e2e.worlds import World
from tests.notes import Note
from tradeloop.cli.client.books import book_states
from tradeloop.cli.client.deployment import SERVICES
from tradeloop.common.messages import BackfillCompleted
from tradeloop.common.model_store.mlflow import MlflowModelStore

MINUTES = float(os.environ.get("TRADELOOP_SOAK_MINUTES", "60"))
BARS_A_SECOND = 20
"""Of each of two universes; a day and a half of hourly bars a second."""
BARS = int(MINUTES * 60 * BARS_A_SECOND)
LOOK_S = 2.0
SLACK_MB = 40.0
"""Memory that a service may gain between the middle and the end: caches that are not full yet, and noise."""
BYTES_A_BAR = 4_000
"""Room of the database that one bar of one universe may take: its bars, and its orders and fills with their indexes."""


class Faults:
    """Kills, stops and silences at moments that follow from a seed."""

    def __init__(self, stack: Stack, servers: Servers, seed: int) -> None:
        self._stack, self._servers = stack, servers
        self._generator = np.random.default_rng(seed)
        self._due_s = time.monotonic() + 10.0
        self.count = 0

    def look(self) -> None:
        """Do something terrible, if its time has come."""
        if time.monotonic() < self._due_s:
            return
        self.count += 1
        kind = self._generator.choice(["kill", "slow", "away"], p=[0.5, 0.4, 0.1])
        if kind == "away":
            server = self._servers.postgres if self._generator.random() < 0.5 else self._servers.redis
            server.kill()
            time.sleep(5.0)
            server.start()
        else:
            service = self._stack.processes[f"{self._generator.choice(SERVICES)}-0"]
            if kind == "kill":
                service.kill()
                service.start()
            elif service.pid is not None:
                os.kill(service.pid, signal.SIGSTOP)
                time.sleep(3.0)
                os.kill(service.pid, signal.SIGCONT)
        self._due_s = time.monotonic() + self._generator.uniform(10.0, 30.0)


def resident_mb(pid: int) -> float:
    """The memory of a process, as the kernel counts it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def stored_bytes(stack: Stack) -> int:
    """The size of the database of the stack."""
    engine = create_engine(stack.addresses.database)
    try:
        with engine.connect() as connected:
            return int(connected.execute(text("SELECT pg_database_size(current_database())")).scalar_one())
    finally:
        engine.dispose()


def peaks(samples: Mapping[str, list[tuple[float, float]]], first: float, last: float) -> dict[str, float]:
    """The most memory of each service between two shares of the run."""
    end = max(at for each in samples.values() for at, _ in each)
    return {
        name: max((mb for at, mb in each if first * end <= at <= last * end), default=0.0)
        for name, each in samples.items()
    }


def test_memory_is_flat_and_what_is_stored_grows_as_documented(servers: Servers, tmp_path: Path, note: Note) -> None:
    worlds = [World("solo", 1, BARS, tmp_path / "bars"), World("trio", 3, BARS, tmp_path / "bars")]
    register(MlflowModelStore(servers.mlflow), worlds)
    samples: dict[str, list[tuple[float, float]]] = {}
    with servers.stack([world.portfolio for world in worlds], tmp_path / "stack") as stack:
        stack.start()
        for world in worlds:
            stack.ask(world.backfill(), BackfillCompleted, timeout_s=1800)
        before = stored_bytes(stack)
        speed = BARS_A_SECOND * 3600.0
        stack.client.send(*(world.replay(speed) for world in worlds))
        faults, began_s = Faults(stack, servers, 1), time.monotonic()
        last = {world.portfolio.name: world.last_us for world in worlds}
        done = False
        while not done:
            assert time.monotonic() - began_s < 3 * 60 * MINUTES + 600, f"it does not end\n{stack.said()}"
            stack.supervise()
            if time.monotonic() - began_s < 60 * MINUTES:
                faults.look()
            for name, process in stack.processes.items():
                if (pid := process.pid) is not None:
                    samples.setdefault(name, []).append((time.monotonic() - began_s, resident_mb(pid)))
            time.sleep(LOOK_S)
            done = stack.settled(last)
        took_s = time.monotonic() - began_s
        grown = (stored_bytes(stack) - before) / (BARS * len(worlds))
        states = book_states(stack.bus)
        assert stack.client.count_dead_letters() == 0
        assert not [state.words for state in states.values() if state.quarantine is not None]
        stack.stop()
        assert len(stack.rows("execution_outbox", "portfolio, input_id")) == 0, "all outputs have left"
    middle, end = peaks(samples, 0.3, 0.6), peaks(samples, 0.7, 1.0)
    for name in sorted(samples):
        note(f"soak, {name}", f"{middle[name]:.0f} MB in the middle, {end[name]:.0f} MB at the end")
    note(
        "soak", f"{BARS * len(worlds):,} bars in {took_s:.0f} s, {faults.count} faults, {grown:.0f} bytes a bar stored"
    )
    assert {name: end[name] - middle[name] for name in samples if end[name] > middle[name] + SLACK_MB} == {}
    assert grown < BYTES_A_BAR
