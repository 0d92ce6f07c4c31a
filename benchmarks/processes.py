"""Five processes over Kafka, PostgreSQL, Redis and MLflow, against processes that only relay."""

from __future__ import annotations

import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from benchmarks import scenario
from benchmarks.loop import HISTORY, prepare, replay_of
from benchmarks.measure import Row, report, seconds
from benchmarks.relay import CONSUMING, PRODUCING, relays
from deploy.native.stack import Stack
from tradeloop.cli.client.client import Client
from tradeloop.cli.client.deployment import SERVICES
from tradeloop.cli.progress import quiet_logs
from tradeloop.common.bus.kafka import KafkaBus, KafkaSettings
from tradeloop.common.bus.port import TopicSpec, partition_for
from tradeloop.common.clock import SystemClock
from tradeloop.common.market import BarArrays, Universe, to_us
from tradeloop.common.messages import BarFrame, OrderUpdated, SignalGenerated
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.model_store.mlflow import MlflowModelStore
from tradeloop.common.portfolio import portfolio_yaml
from tradeloop.common.runtime.publish import publish
from tradeloop.ingest.domain import Resampler, frames

GAIN = 5.0
"""The gain of the random policy's last layer, with which it trades on every third bar or so."""
UNIVERSES = (1, 4, 12)
WARM_UP, REPLAYED = 100, 400
"""Bars of each universe in a replay."""
RATE, TURNS, PER_TURN = 50, 2, 2_000
"""Frames per second, and how many of them in each of so many turns."""
WARMING = 500
"""Messages that go through the relays before those that are counted."""
CIRCLING_S = 5.0
WANTED = {1: 0.3, 12: 0.2}
"""The share of the bare round trip that so many universes are to reach."""


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Running:
    """The whole stack, started as `make up-native` does."""

    native: Stack
    home: Path
    kafka: str
    bus: KafkaBus
    stack: Client
    models: MlflowModelStore

    def pid(self, service: str) -> int:
        return int((self.home / "run" / f"{service}.pid").read_text().split()[0])

    def ready(self, service: str) -> bool:
        address = (self.home / "run" / f"{service}.address").read_text()
        try:
            with urllib.request.urlopen(f"{address}/ready", timeout=2):
                return True
        except (urllib.error.HTTPError, OSError):
            return False


@contextmanager
def running(universes: Sequence[Universe], folder: Path) -> Iterator[Running]:
    folder.chmod(0o711)  # PostgreSQL runs as a user of its own
    books, home = folder / "portfolios", folder / "stack"
    books.mkdir()
    for traded in universes:
        (books / f"{traded.name}.yaml").write_text(portfolio_yaml(scenario.portfolio(traded)))
    native = Stack(home, say)
    native.up(books)
    try:
        lines = (home / "env").read_text().splitlines()
        where = dict(shlex.split(line)[1].split("=", 1) for line in lines)
        kafka = where["TRADELOOP_KAFKA__BOOTSTRAP_SERVERS"]
        models = MlflowModelStore(where["TRADELOOP_MLFLOW_TRACKING_URI"])
        with (
            closing(KafkaBus(KafkaSettings(bootstrap_servers=kafka))) as bus,
            closing(Client(bus, SystemClock(), say)) as stack,
        ):
            yield Running(native, home, kafka, bus, stack, models)
    finally:
        native.down()


def replayed(
    at: Running, universes: Sequence[Universe], bars: BarArrays, start: Mapping[str, int], count: int
) -> float:
    """Bars per second of all universes together, so many of each, from the request to the last decision."""
    topic, total = topic_of(SignalGenerated).name, count * len(universes)

    def decided() -> int:
        return sum(at.bus.end_offsets(topic).values())

    before = decided()

    def all_of_it() -> None:
        for traded in universes:
            begin = start[traded.name]
            at.stack.send(replay_of(traded, bars, begin, begin + count))
        deadline = time.monotonic() + 600.0
        while decided() - before < total:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{decided() - before} decisions on {total} bars after ten minutes")
            time.sleep(0.05)

    return total / seconds(all_of_it)


def circling(at: Running) -> dict[int, float]:
    """Round trips per second of so many messages at once between two processes that only relay."""
    there, back = "bench.there", "bench.back"
    at.bus.create_topics([TopicSpec(there), TopicSpec(back)])
    rates, started = {}, 0
    producer = Producer({**PRODUCING, "bootstrap.servers": at.kafka})
    with relays(at.kafka, [there, back, there]):
        for count in UNIVERSES:
            for i in range(started, count):
                producer.produce(there, b"x" * 600, setting_name(i))
            producer.flush()
            started = count
            time.sleep(3.0)  # until all are on their way
            before = sum(at.bus.end_offsets(there).values())
            taken_s = seconds(lambda: time.sleep(CIRCLING_S))
            rates[count] = (sum(at.bus.end_offsets(there).values()) - before) / taken_s
    return rates


def setting_name(i: int) -> str:
    return f"bench-{i}"


class Watch:
    """Sends messages at a steady pace and notes when answers to them arrive on one partition."""

    def __init__(self, kafka: str, topic: str, partition: int, end: int) -> None:
        self._consumer = Consumer({**CONSUMING, "bootstrap.servers": kafka, "group.id": "bench-watch"})
        self._consumer.assign([TopicPartition(topic, partition, end)])

    def run(
        self, sends: Sequence[Callable[[], None]], patience_s: float = 3.0
    ) -> tuple[list[float], list[tuple[float, bytes]]]:
        """When each was sent, and what arrived when; it listens for `patience_s` after the last one."""
        sent: list[float] = []
        arrived: list[tuple[float, bytes]] = []
        began = time.perf_counter()
        end = began + len(sends) / RATE + patience_s
        while (now := time.perf_counter()) < end:
            due = began + len(sent) / RATE
            if len(sent) < len(sends) and now >= due:
                sent.append(time.perf_counter())
                sends[len(sent) - 1]()
                continue
            wait_s = (due if len(sent) < len(sends) else end) - now
            message = self._consumer.poll(max(wait_s, 0.0))
            if message is not None:
                if (error := message.error()) is not None:
                    raise KafkaException(error)
                arrived.append((time.perf_counter(), message.value() or b""))
        return sent, arrived

    def close(self) -> None:
        self._consumer.close()


def order_latencies(at: Running, watch: Watch, traded: Universe, bars: BarArrays, start: int) -> list[float]:
    """Seconds from the publication of a bar to the arrival of the order that it led to."""
    resampler = Resampler(traded)
    before = frames(traded.name, traded.timeframe, bars.slice(start - 1_440, start))
    for frame in before:
        resampler.feed(frame)
    producer = at.bus.producer()

    def send(frame: BarFrame) -> Callable[[], None]:
        def publish_next() -> None:
            for each in (*resampler.feed(frame), frame):
                publish(producer, each, "ingest")

        return publish_next

    flow = list(frames(traded.name, traded.timeframe, bars.slice(start, start + PER_TURN)))
    sent, arrived = watch.run([send(frame) for frame in flow])
    producer.flush()
    producer.close()
    sent_at = {to_us(frame.close_time): at_s for frame, at_s in zip(flow, sent, strict=True)}
    orders = [(at_s, OrderUpdated.model_validate_json(value)) for at_s, value in arrived]
    return [
        at_s - sent_at[to_us(order.decision_time)]
        for at_s, order in orders
        if order.status == "working" and to_us(order.decision_time) in sent_at
    ]


def relay_latencies(at: Running, watch: Watch, first: str) -> list[float]:
    """Seconds from the publication of as many messages to their arrival behind the relays.

    Others go before, uncounted: relays that only just started have connections to open and metadata to fetch.
    """
    producer = Producer({**PRODUCING, "bootstrap.servers": at.kafka})
    body = b"x" * 600

    def publish(i: int) -> None:
        producer.produce(first, b"%8d" % i + body, "bench")
        producer.poll(0)

    watch.run([partial(publish, i) for i in range(WARMING)])
    sent, arrived = watch.run([partial(publish, i) for i in range(PER_TURN)])
    producer.flush()
    return [at_s - sent[int(value[:8])] for at_s, value in arrived]


def latencies(at: Running, traded: Universe, bars: BarArrays, start: int) -> tuple[list[float], list[float]]:
    """Latencies of orders and of relayed messages, in turns; the first turn of each warms up and is not counted."""
    hops = [f"bench.hop{n}" for n in range(4)]
    at.bus.create_topics([TopicSpec(hop) for hop in hops])
    orders = topic_of(OrderUpdated).name

    def watch(topic: str, key: str) -> Watch:
        ends = at.bus.end_offsets(topic)
        number = partition_for(key, len(ends))
        [end] = [end for partition, end in ends.items() if partition.number == number]
        return Watch(at.kafka, topic, number, end)

    ours: list[float] = []
    bare: list[float] = []
    for turn in range(TURNS + 1):
        with closing(watch(orders, traded.name)) as watching:
            found = order_latencies(at, watching, traded, bars, start + turn * PER_TURN)
        with relays(at.kafka, hops), closing(watch(hops[-1], "bench")) as watching:
            time.sleep(5.0)  # until they have joined
            relayed = relay_latencies(at, watching, hops[0])
        say(f"turn {turn}: {len(found)} orders, {len(relayed)} relayed")
        if len(relayed) != PER_TURN:
            raise RuntimeError(f"{len(relayed)} of {PER_TURN} messages came through the relays")
        if turn:
            ours += found
            bare += relayed
    return ours, bare


@dataclass(frozen=True)
class Restart:
    """The start of one service, in seconds from the start of its process."""

    imported_s: float
    """The time that its imports take, measured by themselves."""
    started_s: float
    """Until it has its adapters and asks for messages."""
    ready_s: float


def restarts(at: Running, books: Path) -> dict[str, Restart]:
    """Kill every service, one at a time, and start it again."""
    found = {}
    for service in SERVICES:
        imported = partial(subprocess.run, [sys.executable, "-c", f"import tradeloop.{service}.main"], check=True)
        imported_s = statistics.median(seconds(imported) for _ in range(3))
        log = at.home / "log" / f"{service}.log"
        size, old = log.stat().st_size, at.pid(service)
        subprocess.run(["kill", "-9", str(old)], check=True)
        times: dict[str, float] = {}
        watcher = threading.Thread(target=_watch_start, args=(at, service, old, log, size, times))
        watcher.start()
        at.native.up(books)
        watcher.join()
        found[service] = Restart(imported_s, times["started"] - times["begun"], times["ready"] - times["begun"])
        say(f"{service}: {found[service]}")
    return found


def _watch_start(at: Running, service: str, old: int, log: Path, size: int, times: dict[str, float]) -> None:
    deadline = time.monotonic() + 120.0
    marks: Mapping[str, Callable[[], bool]] = {
        "begun": lambda: (at.home / "run" / f"{service}.pid").exists() and at.pid(service) != old,
        "started": lambda: b'"event": "started"' in log.read_bytes()[size:],
        "ready": lambda: at.ready(service),
    }
    for name, came in marks.items():
        while not came():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{service} is not {name} after two minutes")
            time.sleep(0.01)
        times[name] = time.monotonic()


def resident_mb(pid: int) -> float:
    """The memory that a process holds now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [size] = [line.split()[1] for line in lines if line.startswith("VmRSS")]
    return int(size) / 1000.0


def measure() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the stack is stopped
    quiet_logs()
    universes = [scenario.universe(setting_name(i)) for i in range(max(UNIVERSES))]
    timed = scenario.universe("bench-timed")
    start = {traded.name: HISTORY for traded in universes}
    length = max(HISTORY + WARM_UP + len(UNIVERSES) * REPLAYED, HISTORY + (TURNS + 1) * PER_TURN)
    with tempfile.TemporaryDirectory(prefix="tradeloop-bench-") as name:
        folder = Path(name)
        with running([*universes, timed], folder) as at:
            for seed, traded in enumerate([*universes, timed]):
                bars = scenario.bars(traded, length, seed)
                prepare(at.stack, at.models, folder, traded, bars, seed, GAIN)
            bound = circling(at)
            replayed(at, universes, bars, start, WARM_UP)
            start = {name: HISTORY + WARM_UP for name in start}
            rates = {}
            for count in UNIVERSES:
                rates[count] = replayed(at, universes[:count], bars, start, REPLAYED)
                start |= {traded.name: start[traded.name] + REPLAYED for traded in universes[:count]}
                say(f"{count} universes: {rates[count]:.0f} bars/s, {bound[count]:.0f} round trips/s")
            timed_bars = scenario.bars(timed, length, len(universes))
            ours, bare = latencies(at, timed, timed_bars, HISTORY)
            memory = {service: resident_mb(at.pid(service)) for service in SERVICES}
            restarted = restarts(at, folder / "portfolios")
    report([*latency_rows(ours, bare), *replay_rows(rates, bound), *restart_rows(restarted, memory)], notes(ours, bare))


def latency_rows(ours: Sequence[float], bare: Sequence[float]) -> Iterator[Row]:
    for percent, times in ((50, 2.0), (99, 3.0)):
        mine, relayed = (1000.0 * float(np.percentile(each, percent)) for each in (ours, bare))
        yield Row(
            f"bar published to order accepted, {RATE} bars/s, p{percent}",
            mine,
            "ms",
            1.0 / times,
            against="bare relay of 4 hops",
            against_measured=relayed,
            ratio=relayed / mine,
        )


def replay_rows(rates: Mapping[int, float], bound: Mapping[int, float]) -> Iterator[Row]:
    for count, rate in rates.items():
        what = "one universe" if count == 1 else f"{count} universes in total"
        yield Row(
            f"replay through five processes, {what}",
            rate,
            "bars/s",
            WANTED.get(count),
            against="bare round trip",
            against_measured=bound[count],
            ratio=rate / bound[count],
        )


def restart_rows(restarted: Mapping[str, Restart], memory: Mapping[str, float]) -> Iterator[Row]:
    for service, took in restarted.items():
        yield Row(f"{service}: killed, started, ready again", took.ready_s, "s", 10.0, "under")
        yield Row(f"{service}: of that, its imports", took.imported_s, "s", None)
        yield Row(f"{service}: of that, until it asks for messages", took.started_s, "s", None)
    for service, size in memory.items():
        yield Row(f"{service}: resident memory after all that", size, "MB", None)


def notes(ours: Sequence[float], bare: Sequence[float]) -> list[str]:
    return [
        "Started as `make up-native` does, all on one machine. Synthetic minute bars of one instrument a universe, the "
        "example strategy, a random policy of the trained size that trades on every third bar or so; 13 portfolios.",
        f"Latency: bars published {RATE} times a second by the benchmark in ingest's place, each noted just before it "
        "is handed to the client, until the order of the decision on it arrives at a consumer. A bar passes four "
        "topics on the way (bars, features, signals, orders); the bare relay is three processes between four topics, "
        "which poll, produce and commit each second without waiting, with one consumer behind them and the same client "
        f"settings; {WARMING} messages warm them up. "
        f"{TURNS} turns each, after one that is not counted: {len(ours):,} orders, {len(bare):,} messages.",
        "Replay: ingest publishes as fast as it can; each decision waits for the mark of its bar, and the next mark "
        "for the orders of that decision, so that each bar costs a round trip from execution to inference and back. "
        f"Its bound is two bare relays between which as many messages circle. {REPLAYED:,} bars of each universe, "
        f"after {WARM_UP} that are not timed; from the request to the last decision.",
        "Restart: killed with SIGKILL, started by `python -m deploy.native up`; from the start of the process until "
        "`/ready` says so, which means assigned, its state read back, its stores reachable. The imports are timed by "
        "themselves, in processes that do nothing else.",
    ]


if __name__ == "__main__":
    measure()
