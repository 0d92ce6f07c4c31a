from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.bar_store.port import BarStore, BarStoreUnavailable
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import LogPosition, Partition
from tradeloop.common.clock import ManualClock
from tradeloop.common.errors import UserError
from tradeloop.common.market import (
    BarArrays,
    Instrument,
    Series,
    Timeframe,
    TimeRange,
    Universe,
    align,
    resample,
    to_us,
)
from tradeloop.common.messages import (
    BackfillCompleted,
    BackfillRequested,
    BarFrame,
    LiveRequested,
    Message,
    ReplayRequested,
)
from tradeloop.common.messages.topics import dead_letter_topic, event_id, specs, topic_of
from tradeloop.common.runtime.headers import ERROR
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.pump import pump
from tradeloop.common.runtime.runner import Runner
from tradeloop.ingest.adapters.bus_frames import BusFrames
from tradeloop.ingest.adapters.files import read_blocks
from tradeloop.ingest.application import Ingest
from tradeloop.ingest.config import Settings
from tradeloop.ingest.domain import frames
from tradeloop.ingest.main import build

START = datetime(2022, 1, 3, 9, 30, tzinfo=UTC)
EVER = 2**62
HIGHER = (Timeframe.M5, Timeframe.H1)
HERE = LogPosition(Partition("ingest.replay_requested.v1", 0), 0)


def universe(name: str = "u", instruments: int = 1) -> Universe:
    return Universe(
        name=name,
        instruments=tuple(Instrument(id=f"x:{letter}") for letter in "AB"[:instruments]),
        timeframe=Timeframe.M1,
        higher_timeframes=HIGHER,
    )


def series(minutes: Iterable[int], seed: int = 0) -> Series:
    """Bars at minutes after `START`. A minute has the same bar in every series of a seed."""
    table = np.random.default_rng(seed).uniform(1, 2, (10_000, 5))
    rows = np.array(list(minutes), dtype=np.int64)
    values = table[rows]
    return {
        "open_us": to_us(START) + rows * Timeframe.M1.us,
        "open": values[:, 0],
        "high": values[:, :4].max(axis=1),
        "low": values[:, :4].min(axis=1),
        "close": values[:, 3],
        "volume": values[:, 4],
        "funding_rate": values[:, 4] / 1e4,
    }


def bars(*minutes: Iterable[int]) -> BarArrays:
    ids = universe(instruments=len(minutes)).ids
    return align(ids, Timeframe.M1, [series(times, seed) for seed, times in enumerate(minutes)])


def write_csv(path: Path, minutes: Iterable[int], seed: int = 0) -> str:
    columns = series(minutes, seed)
    table = zip(*(columns[name].tolist() for name in columns), strict=True)
    lines = [",".join(columns).replace("open_us", "ts"), *(",".join(map(repr, row)) for row in table)]
    path.write_text("\n".join(lines))
    return str(path)


def span(start: int, end: int) -> TimeRange:
    return TimeRange(start=START + timedelta(minutes=start), end=START + timedelta(minutes=end))


def replay(
    start: int, end: int, of: Universe | None = None, speed: float | None = None, request_id: str = "r"
) -> ReplayRequested:
    return ReplayRequested(request_id=request_id, universe=of or universe(), range=span(start, end), speed=speed)


def minute(frame: BarFrame) -> int:
    return int((frame.open_time - START) / timedelta(minutes=1))


class Stand:
    """An ingest service on a bus of its own."""

    def __init__(self, folder: Path, store: BarStore | None = None, **settings: int) -> None:
        self.clock = ManualClock(START + timedelta(days=30))
        self.bus = MemoryBus()
        self._settings = Settings(database_url=f"sqlite:///{folder}/bars.db", **{"window_frames": 10_000} | settings)  # type: ignore[arg-type]
        self._store = store
        self.ingest, self.runner = self._start()

    def _start(self) -> tuple[Ingest, Runner]:
        ingest = build(self._settings, self.bus, self.clock)
        if self._store is not None:
            ingest._store = self._store
        policy = RunPolicy(retry_delay_s=0.0, unavailable_delay_s=0.0, commit_interval_s=0.0)
        return ingest, Runner(ingest, self.bus, self.clock, policy)

    @property
    def store(self) -> BarStore:
        return self.ingest._store

    def crash(self) -> None:
        """Lose all state; nothing more is committed. A new process takes over."""
        del self.bus._groups["ingest"].members[:]
        self.ingest, self.runner = self._start()

    def send(self, *messages: Message) -> None:
        producer = self.bus.producer()
        for message in messages:
            producer.publish(topic_of(type(message)).name, message.key, message.encode(), {})

    def pump(self, *messages: Message) -> None:
        self.send(*messages)
        pump([self.runner])

    def sent(self, message: type[Message]) -> Iterator[Message]:
        """What went out, partition by partition, in order."""
        for partition, end in self.bus.end_offsets(topic_of(message).name).items():
            for record in self.bus.read(partition, 0, end):
                yield message.model_validate_json(record.value)

    def dead_letter(self) -> str:
        """The error of the last request that was given up on."""
        topic = dead_letter_topic(topic_of(BackfillRequested).name, "ingest")
        ends = self.bus.end_offsets(topic)
        return [record for p, end in ends.items() for record in self.bus.read(p, 0, end)][-1].headers[ERROR]

    def frames(self, timeframe: Timeframe | None = None) -> list[BarFrame]:
        """The frames, but for whether a run begins with them."""
        sent = [frame for frame in self.sent(BarFrame) if isinstance(frame, BarFrame)]
        plain = [frame.model_copy(update={"begins": False}) for frame in sent]
        return [frame for frame in plain if timeframe in (None, frame.timeframe)]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Stand]]:
    stands: list[Stand] = []

    def start(**arguments: object) -> Stand:
        stands.append(Stand(tmp_path, **arguments))  # type: ignore[arg-type]
        return stands[-1]

    yield start
    for stand in stands:
        stand.runner.close()


def assert_same(left: BarArrays, right: BarArrays) -> None:
    assert left.open_us.tolist() == right.open_us.tolist()
    np.testing.assert_array_equal(left.present, right.present)
    for name in ("open", "high", "low", "close", "volume", "funding_rate"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


# --- backfill -------------------------------------------------------------------------------------


def backfill(of: Universe, *files: str, request_id: str = "b") -> BackfillRequested:
    return BackfillRequested(request_id=request_id, universe=of, files=dict(zip(of.ids, files, strict=True)))


def test_a_backfill_stores_base_and_higher_bars(make: Callable[..., Stand], tmp_path: Path) -> None:
    stand, two = make(), universe(instruments=2)
    a, b = [*range(40), *range(50, 200)], range(20, 180)
    files = write_csv(tmp_path / "a.csv", a), write_csv(tmp_path / "b.csv", b, 1)
    stand.pump(backfill(two, *files))

    expected = bars(a, b)
    assert_same(stand.store.read(two.ids, Timeframe.M1, 0, EVER), expected)
    for timeframe in HIGHER:
        assert_same(stand.store.read(two.ids, timeframe, 0, EVER), resample(expected, Timeframe.M1, timeframe))
    (completed,) = stand.sent(BackfillCompleted)
    assert completed == BackfillCompleted(request_id="b", universe=two, range=span(0, 200), bars=350, gaps=1)


def test_a_backfill_again_changes_nothing(make: Callable[..., Stand], tmp_path: Path) -> None:
    stand = make()
    request = backfill(universe(), write_csv(tmp_path / "a.csv", range(100)))
    stand.pump(request)
    stand.pump(request)
    first, second = stand.sent(BackfillCompleted)
    assert event_id(first) == event_id(second)
    assert_same(stand.store.read(["x:A"], Timeframe.M1, 0, EVER), bars(range(100)))


def test_a_corrected_file_becomes_the_next_revision(make: Callable[..., Stand], tmp_path: Path) -> None:
    store = MemoryBarStore(ManualClock(START))
    stand = make(store=store)
    stand.pump(backfill(universe(), write_csv(tmp_path / "a.csv", range(60))))
    for seed in (5, 6):
        stand.pump(backfill(universe(), write_csv(tmp_path / "a.csv", range(20, 40), seed)))
    expected = bars(range(60))
    for name in ("open", "high", "low", "close", "volume", "funding_rate"):
        getattr(expected, name)[20:40, 0] = series(range(20, 40), 6)[name]
    assert_same(store.read(["x:A"], Timeframe.M1, 0, EVER), expected)
    assert_same(store.read(["x:A"], Timeframe.M5, 0, EVER), resample(expected, Timeframe.M1, Timeframe.M5))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_files_in_any_order_give_the_bars_of_the_whole(
    make: Callable[..., Stand], tmp_path: Path, order: Sequence[int]
) -> None:
    """The cuts lie inside of buckets, and a bucket's last minutes are missing before a long gap."""
    stand = make()
    parts = [range(100), range(100, 137), range(700, 803)]
    for part in order:
        stand.pump(backfill(universe(), write_csv(tmp_path / f"{part}.csv", parts[part])))
    whole = bars([minute for part in parts for minute in part])
    for timeframe in HIGHER:
        assert_same(stand.store.read(["x:A"], timeframe, 0, EVER), resample(whole, Timeframe.M1, timeframe))


def test_a_refused_file_stores_nothing_and_is_dead_lettered(make: Callable[..., Stand], tmp_path: Path) -> None:
    stand, two = make(), universe(instruments=2)
    bad = tmp_path / "b.csv"
    good = write_csv(tmp_path / "a.csv", range(30))
    bad.write_text(Path(write_csv(bad, range(30))).read_text().replace("1.", "-1.", 1))
    stand.pump(backfill(two, good, str(bad)))

    assert len(stand.store.read(two.ids, Timeframe.M1, 0, EVER)) == 0
    assert list(stand.sent(BackfillCompleted)) == []
    assert stand.runner.counters.dead_letters == 1
    assert re.search(
        r"b\.csv, line 2: open -1\..* is not positive: positive prices alone can be traded", stand.dead_letter()
    )
    assert not stand.ingest.pending()


def test_instruments_that_never_share_an_open_time_are_refused(make: Callable[..., Stand], tmp_path: Path) -> None:
    stand, two = make(), universe(instruments=2)
    whole = Path(write_csv(tmp_path / "a.csv", range(100)))
    header, *rows = whole.read_text().splitlines()
    late = [",".join([str(int(row.split(",")[0]) + 30_000_000), *row.split(",")[1:]]) for row in rows]
    beside = tmp_path / "b.csv"
    beside.write_text("\n".join([header, *late]))
    stand.pump(backfill(two, str(whole), str(beside)))
    assert "bars of x:A open 0:00:00 after a whole 1m, those of x:B 0:00:30" in stand.dead_letter()
    assert len(stand.store.read(two.ids, Timeframe.M1, 0, EVER)) == 0


def test_bars_beside_the_minute_are_stored_resampled_and_replayed(make: Callable[..., Stand], tmp_path: Path) -> None:
    stand, one = make(), universe()
    whole = Path(write_csv(tmp_path / "a.csv", range(100)))
    header, *rows = whole.read_text().splitlines()
    late = [",".join([str(int(row.split(",")[0]) + 30_000_000), *row.split(",")[1:]]) for row in rows]
    whole.write_text("\n".join([header, *late]))
    stand.pump(backfill(one, str(whole)), replay(0, 101))
    moved = {**series(range(100)), "open_us": series(range(100))["open_us"] + 30_000_000}
    expected = align(one.ids, Timeframe.M1, [moved])
    for timeframe in HIGHER:
        longer = resample(expected, Timeframe.M1, timeframe)
        assert_same(stand.store.read(one.ids, timeframe, 0, EVER), longer)
        assert [to_us(frame.open_time) for frame in stand.frames(timeframe)] == longer.open_us.tolist()
    assert len(stand.frames(Timeframe.M1)) == 100


def test_a_backfill_names_each_instrument(make: Callable[..., Stand]) -> None:
    request = BackfillRequested(request_id="b", universe=universe(), files={"x:B": "b.csv"})
    with pytest.raises(UserError, match="backfill of u: give one file for each of its instruments, see x:A, x:B"):
        list(make().ingest.handle(request, HERE))


# --- replay ---------------------------------------------------------------------------------------


def test_a_replay_publishes_the_range_in_order(make: Callable[..., Stand]) -> None:
    stand, two = make(), universe(instruments=2)
    history = bars(range(300), [*range(10, 100), *range(150, 300)])
    stand.store.write(Timeframe.M1, history)
    stand.pump(replay(0, 300, two))

    sent = stand.frames()
    assert [frame for frame in sent if frame.timeframe == Timeframe.M1] == list(frames("u", Timeframe.M1, history))
    for timeframe in HIGHER:
        batch = resample(history, Timeframe.M1, timeframe)
        assert [frame for frame in sent if frame.timeframe == timeframe] == list(frames("u", timeframe, batch))
    assert stand.frames(Timeframe.M1)[0].missing == ("x:B",)
    assert not stand.ingest.pending()


def test_a_run_begins_with_the_first_frame_of_a_replay(make: Callable[..., Stand]) -> None:
    stand = make()
    stand.store.write(Timeframe.M1, bars(range(60)))
    stand.pump(replay(5, 30), replay(40, 50))
    sent = [frame for frame in stand.sent(BarFrame) if isinstance(frame, BarFrame)]
    assert [minute(frame) for frame in sent if frame.begins] == [5, 40]


def test_what_closes_with_a_base_frame_goes_out_before_it(make: Callable[..., Stand]) -> None:
    stand = make()
    # START is 9:30. The hour's last minutes are missing, and so are those of 10:35.
    stand.store.write(Timeframe.M1, bars([*range(28), *range(33, 68), *range(71, 100)]))
    stand.pump(replay(0, 100))

    sent = stand.frames()
    for i, frame in enumerate(sent):
        if frame.timeframe == Timeframe.M1:
            earlier = {f.identity for f in sent[:i]}
            closed = [f for f in sent if f.timeframe != Timeframe.M1 and f.close_time <= frame.close_time]
            assert {f.identity for f in closed} <= earlier
    hour = next(i for i, frame in enumerate(sent) if frame.timeframe == Timeframe.H1)
    assert sent[hour].close_time == START + timedelta(minutes=30)
    following = next(frame for frame in sent[hour:] if frame.timeframe == Timeframe.M1)
    assert minute(following) == 33, "just before the next base frame"
    assert len({event_id(frame) for frame in sent}) == len(sent)


@pytest.mark.parametrize("cut", [0, 1, 4, 5, 29, 30, 47, 88, 90, 93, 149])
def test_a_replay_goes_on_where_another_ended(make: Callable[..., Stand], cut: int) -> None:
    """The frames of two parts are those of the whole: buckets are rebuilt from the store."""
    history = bars([*range(28), *range(33, 88), *range(92, 150)])
    stand = make()
    stand.store.write(Timeframe.M1, history)
    if cut:
        stand.pump(replay(0, cut))
    stand.pump(replay(cut, 150))
    parts = stand.frames()
    stand.pump(replay(0, 150))
    assert parts == stand.frames()[len(parts) :]


def test_a_step_publishes_a_chunk_at_most(make: Callable[..., Stand]) -> None:
    stand = make(chunk_frames=16)
    stand.store.write(Timeframe.M1, bars(range(100)))
    stand.send(replay(0, 100))
    seen = 0
    while stand.runner.step():
        now = len(stand.frames(Timeframe.M1))
        assert now - seen <= 16
        seen = now
    assert seen == 100


def test_two_universes_advance_side_by_side(make: Callable[..., Stand]) -> None:
    stand = make(chunk_frames=5)
    stand.store.write(Timeframe.M1, bars(range(50), range(50)))
    stand.send(replay(0, 50, universe("one")), replay(0, 50, universe("two", 2)))
    stand.runner.step()
    assert {frame.universe for frame in stand.frames()} == {"one", "two"}


def test_replays_of_one_universe_follow_each_other(make: Callable[..., Stand]) -> None:
    stand = make(chunk_frames=7)
    stand.store.write(Timeframe.M1, bars(range(50)))
    stand.pump(replay(0, 20, request_id="r1"), replay(10, 30, request_id="r2"))
    assert [minute(frame) for frame in stand.frames(Timeframe.M1)] == [*range(20), *range(10, 30)]


def test_speed_throttles(make: Callable[..., Stand]) -> None:
    stand = make()
    stand.store.write(Timeframe.M1, bars(range(100)))
    stand.send(replay(0, 100, speed=60.0))
    stand.runner.step()
    for elapsed_s, published in ((0, 1), (0.5, 1), (0.5, 2), (10, 12), (1000, 100)):
        assert stand.runner.waiting, "a pump must not end here"
        stand.clock.advance(elapsed_s)
        for _ in range(3):
            stand.runner.step()
        assert len(stand.frames(Timeframe.M1)) == published
    assert not stand.runner.waiting
    assert not stand.ingest.pending()


def test_a_crash_repeats_a_replay_with_the_same_messages(make: Callable[..., Stand]) -> None:
    stand = make(chunk_frames=10)
    stand.store.write(Timeframe.M1, bars(range(100)))
    stand.send(replay(0, 100))
    for _ in range(4):
        stand.runner.step()
    before = [event_id(frame) for frame in stand.frames()]
    assert len(stand.frames(Timeframe.M1)) == 40
    assert len(stand.ingest.pending()) == 1

    stand.crash()
    stand.pump()
    after = [event_id(frame) for frame in stand.frames()][len(before) :]
    assert after[: len(before)] == before
    assert len(stand.frames(Timeframe.M1)) == 140

    stand.runner.commit()
    stand.crash()
    stand.pump()
    assert len(stand.frames(Timeframe.M1)) == 140, "a replay that ended is not repeated"


def test_a_replay_whose_partition_was_taken_begins_anew_when_its_request_comes_again(
    make: Callable[..., Stand],
) -> None:
    stand = make(chunk_frames=10)
    stand.store.write(Timeframe.M1, bars(range(30)))
    assert list(stand.ingest.handle(replay(0, 30), HERE)) == []
    first = list(stand.ingest.advance())
    stand.ingest.revoked()
    assert not stand.ingest.pending()
    assert list(stand.ingest.advance()) == []
    assert list(stand.ingest.handle(replay(0, 30), HERE)) == []
    assert list(stand.ingest.pending()) == [HERE]
    assert list(stand.ingest.advance()) == first


def test_what_could_not_be_published_comes_again(make: Callable[..., Stand]) -> None:
    stand = make()
    stand.store.write(Timeframe.M1, bars(range(60)))
    list(stand.ingest.handle(replay(0, 60), HERE))
    published: list[Message] = []
    for fails_after in (3, 7, 1, 0, 30, 100):
        for count, message in enumerate(stand.ingest.advance()):
            if count == fails_after:
                break
            published.append(message)
    history = stand.store.read(["x:A"], Timeframe.M1, 0, EVER)
    first, *others = frames("u", Timeframe.M1, history)
    expected = [first.model_copy(update={"begins": True}), *others]
    assert [m for m in published if isinstance(m, BarFrame) and m.timeframe == Timeframe.M1] == expected
    assert len({event_id(message) for message in published}) == len(published)
    assert not stand.ingest.pending()


def test_a_long_gap_is_no_end(make: Callable[..., Stand]) -> None:
    stand = make()
    stand.store.write(Timeframe.M1, bars([0, 1, 9_990, 9_991]))
    stand.pump(replay(-30_000, 20_000))
    assert [minute(frame) for frame in stand.frames(Timeframe.M1)] == [0, 1, 9_990, 9_991]


def test_nothing_to_replay_is_an_error(make: Callable[..., Stand]) -> None:
    stand = make()
    stand.store.write(Timeframe.M1, bars(range(10)))
    with pytest.raises(UserError, match="replay of u: no 1m bars are stored between 2022-01-03T09:40"):
        list(stand.ingest.handle(replay(10, 30), HERE))
    assert not stand.ingest.pending()


def test_a_replay_before_its_backfill_waits_for_it(make: Callable[..., Stand], tmp_path: Path) -> None:
    stand = make()
    stand.send(replay(0, 30))
    stand.runner.step()
    assert (stand.runner.counters.retried, len(stand.frames())) == (1, 0)
    stand.pump(backfill(universe(), write_csv(tmp_path / "a.csv", range(30))))
    assert len(stand.frames(Timeframe.M1)) == 30


class Flaky:
    """A store that is out of reach every third time."""

    def __init__(self, store: BarStore) -> None:
        self._store, self._calls = store, 0

    def __getattr__(self, name: str) -> object:
        self._calls += name != "close"
        if self._calls % 3 == 0 and name != "close":
            raise BarStoreUnavailable("out of reach")
        return getattr(self._store, name)


def test_a_store_out_of_reach_delays_and_loses_nothing(make: Callable[..., Stand]) -> None:
    calm = MemoryBarStore(ManualClock(START))
    calm.write(Timeframe.M1, bars(range(30)))
    stand = make(store=Flaky(calm))
    stand.send(replay(0, 30))
    for _ in range(20):
        stand.runner.step()
    assert list(frames("u", Timeframe.M1, bars(range(30)))) == stand.frames(Timeframe.M1)
    assert stand.runner.counters.dead_letters == 0


def test_messages_of_others_are_a_mistake(make: Callable[..., Stand]) -> None:
    frame = next(frames("u", Timeframe.M1, bars([0])))
    with pytest.raises(TypeError, match="BarFrame"):
        list(make().ingest.handle(frame, HERE))


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INGEST_DATABASE_URL", "postgresql+psycopg://user:hidden@host/bars")
    monkeypatch.setenv("INGEST_KAFKA__BOOTSTRAP_SERVERS", "kafka:9092")
    settings = Settings()
    assert settings.database_url.get_secret_value().endswith("hidden@host/bars")
    assert settings.kafka.bootstrap_servers == "kafka:9092"
    assert "hidden" not in repr(settings)


class Silence:
    """No marks."""

    def new(self) -> Mapping[str, int]:
        return {}

    def close(self) -> None:
        """Nothing is held."""


class Seen:
    """Says what was published."""

    def __init__(self) -> None:
        self.newest_us: int | None = None

    def newest_since(self, request: LogPosition, universe: Universe) -> int | None:
        return self.newest_us

    def frames(self, universe: Universe, place: int) -> tuple[Sequence[BarFrame], int | None]:
        return (), None

    def marks(self, universe: Universe) -> Silence:
        return Silence()

    def recent(self, universe: Universe, base_frames: int) -> Sequence[BarFrame]:
        return ()

    def revision(self, universe: Universe, timeframe: Timeframe, open_us: int) -> int:
        return -1

    def live_requests(self, owns: Callable[[str], bool]) -> Sequence[tuple[LiveRequested, LogPosition]]:
        return ()


def test_a_replay_goes_on_behind_what_it_published_before_a_crash(make: Callable[..., Stand]) -> None:
    stand = make(chunk_frames=10_000)
    stand.store.write(Timeframe.M1, bars([*range(40), *range(45, 200)]))
    seen = Seen()

    def replayed() -> list[Message]:
        ingest = Ingest(stand.store, read_blocks, seen, stand.clock, chunk_frames=10_000, window_frames=10_000)
        assert list(ingest.handle(replay(5, 190), HERE)) == []
        published = list(ingest.advance())
        assert list(ingest.advance()) == []
        assert not ingest.pending()
        return published

    whole = replayed()
    base = [n for n, one in enumerate(whole) if isinstance(one, BarFrame) and one.timeframe is Timeframe.M1]
    for cut in (base[0], base[33], base[34], base[54], base[-2], base[-1]):
        last = whole[cut]
        assert isinstance(last, BarFrame)
        seen.newest_us = to_us(last.open_time)
        assert replayed() == whole[cut + 1 :]
    seen.newest_us = to_us(START)  # before the range: another replay's
    assert replayed() == whole


def recorded() -> list[BarFrame]:
    """A live run from minute 12 on, with a hole, corrections of old, and one of before the run's range."""
    now = {frame.open_time: frame for frame in frames("u", Timeframe.M1, bars([*range(12, 30), *range(33, 60)]))}
    corrected = {minute(one): one for one in frames("u", Timeframe.M1, bars(range(5, 60)))}
    found = []
    for frame in now.values():
        found.append(frame.model_copy(update={"live": True, "catches_up": minute(frame) % 7 == 0}))
        if minute(frame) == 35:
            found.append(next(frames("u", Timeframe.M5, bars(range(30, 34)))).model_copy(update={"live": True}))
        for old in {14: (6, 13), 36: (20, 31), 50: (20, 49)}.get(minute(frame), ()):
            bar = corrected[old].bars[0].model_copy(update={"volume": float(minute(frame))})
            told = {"bars": (bar,), "revision": 1 + (old == 20 and minute(frame) == 50), "live": True}
            found.append(corrected[old].model_copy(update=told))
    return found


def test_a_replay_of_a_record_sends_it_again_in_its_order_and_stores_it_first(make: Callable[..., Stand]) -> None:
    stand, live, seen = make(), MemoryBus(), Seen()
    live.create_topics(specs({}))
    for one in recorded():
        live.producer().publish(topic_of(BarFrame).name, one.key, one.encode(), {})
    stored = bars(range(5, 12))
    stand.store.write(Timeframe.M1, stored)

    def replayed(start: int, end: int) -> list[BarFrame]:
        ingest = Ingest(
            stand.store, read_blocks, seen, stand.clock, chunk_frames=7, window_frames=99, record=BusFrames(live)
        )
        assert list(ingest.handle(replay(start, end), HERE)) == []
        sent: list[BarFrame] = []
        while ingest.pending():
            for message in ingest.advance():
                assert isinstance(message, BarFrame)
                there = stand.store.read(
                    ["x:A"], message.timeframe, to_us(message.open_time), to_us(message.close_time)
                )
                assert there.present.all()
                sent.append(message)
        return sent

    def told(one: BarFrame, begins: bool = False) -> BarFrame:
        return one.model_copy(update={"live": False, "catches_up": False, "begins": begins})

    base = [one for one in recorded() if one.timeframe is Timeframe.M1 and not one.revision]
    first, last = (next(n for n, one in enumerate(recorded()) if one == wanted) for wanted in (base[3], base[-4]))
    part = [told(one, begins=not n) for n, one in enumerate(recorded()[first : last + 1])]
    assert replayed(15, 57) == part
    assert [minute(one) for one in part if one.revision] == [20, 31, 20, 49]
    for old, volume in ((20, 50.0), (31, 36.0), (49, 50.0)):
        at_us = to_us(START + timedelta(minutes=old))
        assert stand.store.read(["x:A"], Timeframe.M1, at_us, at_us + 1).volume[0, 0] == volume

    before = replayed(5, 57)  # what the record lacks is taken from the store
    assert [minute(one) for one in before if one.timeframe is Timeframe.M1][:7] == list(range(5, 12))
    assert [minute(one) for one in before if one.begins] == [5]
    assert before[-len(recorded()[: last + 1]) :] == [told(one) for one in recorded()[: last + 1]]

    for cut in (0, 5, 20, len(part) - 2):
        if not part[cut].revision and part[cut].timeframe is Timeframe.M1:
            seen.newest_us = to_us(part[cut].open_time)
            assert replayed(15, 57) == part[cut + 1 :]
