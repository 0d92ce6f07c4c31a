"""Parity: the loop of four services bar by bar equals the vectorised backtest, to the last bit.

Also when services go down and come back in the middle, when a run is repeated, and when a model takes over in
mid-run. No training: the policies are formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.e2e.untrained import untrained
from tests.permitted import Permitted
from tradeloop.common.arrays import Floats
from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import Partition
from tradeloop.common.clock import ManualClock
from tradeloop.common.errors import Unavailable
from tradeloop.common.evaluation import backtest as backtests
from tradeloop.common.evaluation.backtest import BacktestResult, backtest
from tradeloop.common.feature_store.memory import MemoryFeatureStore
from tradeloop.common.features import shown
from tradeloop.common.market import (
    BAR_COLUMNS,
    EVER_US,
    BarArrays,
    Instrument,
    InstrumentEvent,
    Membership,
    Series,
    Timeframe,
    TimeRange,
    Universe,
    align,
    from_us,
    resample,
    to_us,
)
from tradeloop.common.messages import (
    BackfillCompleted,
    BackfillRequested,
    BarFrame,
    FeaturesComputed,
    InstrumentChanged,
    Message,
    ModelActivated,
    ModelReady,
    OrderFilled,
    OrderUpdated,
    PortfolioMarked,
    ReplayRequested,
    RiskVerdict,
    SignalGenerated,
    Transition,
)
from tradeloop.common.messages.ingest import Reading
from tradeloop.common.messages.topics import CATALOGUE, dead_letter_topic, retry_topic, topic_of
from tradeloop.common.model_store.port import Actor, Policy, RegisteredPolicy
from tradeloop.common.portfolio import Costs, Portfolio
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.readback import all_records
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.strategy import (
    RewardContext,
    Strategy,
    TargetPosition,
    cross_mean,
    cross_rank,
    cross_zscore,
    log_return,
    of,
    on,
    relative,
    reward,
    talib,
    time_of_day,
    volatility,
    zscore,
)
from tradeloop.common.strategy.observations import ObservationBuilder
from tradeloop.execution.adapters.bus_history import BusHistory as ExecutionHistory
from tradeloop.execution.adapters.memory_ledger import MemoryLedger
from tradeloop.execution.adapters.paper import PaperVenue
from tradeloop.execution.application import Execution
from tradeloop.inference.adapters.bus_history import BusHistory
from tradeloop.inference.application import Inference
from tradeloop.ingest.adapters.bus_frames import BusFrames
from tradeloop.ingest.application import Ingest
from tradeloop.ingest.ports import FileReport
from tradeloop.preprocess.adapters.bus_sent import BusSent
from tradeloop.preprocess.application import Preprocess

M = TypeVar("M", bound=Message)
BASE, HIGHER = Timeframe.M1, Timeframe.M5
START_US = 1_767_571_200_000_000  # 2026-01-05 00:00
HISTORY = 60
"""Bars that are stored, but not replayed."""
BARS = 260


@reward(version="1")
class Careful:
    """Uses all that a reward may: a memory, features, and what trading cost."""

    initial_state = {"seen": 0.0, "returns": (0.0,) * 7}  # noqa: RUF012  a mapping of defaults, never written

    def __call__(self, c: RewardContext) -> dict[str, Floats]:
        c.state["seen"][:] += 1.0
        returns = c.state["returns"]
        returns[:, :-1] = returns[:, 1:]
        returns[:, -1] = c.equity / c.equity_prev - 1.0
        return {
            "sharpe": returns.mean(axis=1) / (returns.std(axis=1) + 1e-4),
            "pnl": np.log(c.equity / c.equity_prev),
            "turnover": -0.01 * c.turnover,
            "patience": 1e-6 * c.state["seen"],
            "momentum": 0.1 * c.features["log_return_1"].mean(axis=1),
            "calm": -c.features["volatility_parkinson_5"].mean(axis=1),
            "lead": 0.01 * (c.features["cross_zscore_zscore_rsi_5_6"] * c.position).sum(axis=1),
        }


STRATEGY = Strategy(
    "formula",
    [
        log_return(1),
        talib("RSI", timeperiod=5),
        on("5m", relative(talib("EMA", timeperiod=3))),
        *time_of_day("America/New_York"),
        of(0, on("5m", log_return(1))),
        cross_mean(log_return(3)),
        cross_rank(log_return(5)),
    ],
    Careful(),
    window=4,
    actions=TargetPosition(no_trade_band=0.02),
    reward_features=[volatility(5, "parkinson"), cross_zscore(zscore(talib("RSI", timeperiod=5), 6))],
)
FEATURES = len(STRATEGY.features)


class Formula:
    """A policy whose graph is a number: it follows the last returns that many times, less a part of what it holds."""

    def __init__(self, policy: Policy) -> None:
        self._gain, self._count = float(policy.onnx), policy.manifest.instruments

    def act(self, observation: NDArray[np.float32]) -> Floats:
        size = STRATEGY.window * self._count * FEATURES
        rows = observation[0, :size].astype(np.float64).reshape(STRATEGY.window, self._count, FEATURES)
        weights = observation[0, size : size + self._count].astype(np.float64)
        wanted = self._gain * rows[:, :, 0].mean(axis=0) + 0.01 * (rows[-1, :, 1] - 50.0) + 20.0 * rows[-1, :, 2]
        wanted += 0.05 * rows[-1, :, 3:5].sum(axis=-1) + 10.0 * rows[-1, :, 5:7].sum(axis=-1) + 0.05 * rows[-1, :, 7]
        action: Floats = np.tanh(wanted - 0.3 * weights)
        return action[None]


def policy(portfolio: Portfolio, gain: float, strategy: Strategy = STRATEGY) -> Policy:
    return untrained(strategy, portfolio.universe.name, len(portfolio.universe.instruments), repr(gain).encode())


class Versions:
    """A source of two versions; the first is the champion."""

    def __init__(self, *policies: Policy) -> None:
        self._policies = policies

    def load(self, name: str, reference: str) -> RegisteredPolicy:
        version = 1 if reference == "champion" else int(reference)
        return RegisteredPolicy(name, str(version), self._policies[version - 1])


class Market:
    """Random walks of so many instruments; with several, bars are missing and one is listed late.

    Where members change, one leaves and comes back, one joins, one is never a member, and the one that is listed late
    belongs from its first bar on, before its features are known.

    With events, one is halted again and again, also while the market rests, one is delisted for nothing and goes on to
    have bars, and one is renamed, halted, and delisted out of its halt.
    """

    def __init__(self, instruments: int, members_change: bool = False, events: bool = False) -> None:
        generator = np.random.default_rng(instruments)
        self.ids = tuple(f"x:{letter}" for letter in "ABCD"[:instruments])
        grid = START_US + BASE.us * np.flatnonzero(generator.random(BARS + 40) < 0.93)[:BARS]
        series = []
        for a in range(instruments):
            close = 100.0 * np.exp(np.cumsum(generator.normal(0.0, 2e-3, BARS)))
            opened = np.r_[100.0, close[:-1]] * np.exp(generator.normal(0.0, 2e-4, BARS))
            kept = generator.random(BARS) > (0.15 if a else 0.0)
            kept[: (HISTORY + 25) * (a == 3)] = False
            columns = {
                "open_us": grid,
                "open": opened,
                "high": np.maximum(opened, close) * 1.0003,
                "low": np.minimum(opened, close) * 0.9997,
                "close": close,
                "volume": generator.lognormal(6.0, 1.0, BARS),
                "funding_rate": np.where(np.arange(BARS) % 50 == 0, 1e-4, 0.0),
            }
            series.append({name: column[kept] for name, column in columns.items()})
        self.bars = align(self.ids, BASE, series)
        self.universe = Universe(
            name=f"u{instruments}",
            instruments=tuple(Instrument(id=one, lot_size=1e-3, tick_size=0.01, taker_bps=3.0) for one in self.ids),
            timeframe=BASE,
            higher_timeframes=(HIGHER,),
            members=self._stays() if members_change else {},
            events=self._events() if events else {},
        )
        # A bar trades less than an order sometimes wants, so that some fill in part.
        costs = Costs(slippage_bps=1.0, impact_bps=8.0, max_participation=0.5)
        self.portfolio = Portfolio(name="book", universe=self.universe, strategy="formula", costs=costs)

    def _stays(self) -> dict[str, tuple[Membership, ...]]:
        def stay(first: int, stop: int | None = None) -> Membership:
            end = None if stop is None else from_us(self.bars.open_us[stop])
            return Membership(start=from_us(self.bars.open_us[first]), end=end)

        return {
            "x:A": (stay(0, HISTORY + 90), stay(HISTORY + 130)),
            "x:C": (stay(HISTORY + 60),),
            "x:D": (stay(HISTORY + 20, HISTORY + 170),),
        }

    def _events(self) -> dict[str, tuple[InstrumentEvent, ...]]:
        opens, half_us = self.bars.open_us, BASE.us // 2
        rests = [t for t in range(HISTORY + 30, BARS - 30) if opens[t] > opens[t - 1] + BASE.us][::2]

        def one(kind: str, time_us: int, **more: Any) -> InstrumentEvent:
            return InstrumentEvent.model_validate({"time": from_us(time_us), "kind": kind, **more})

        halts = []
        for t in rests:
            halts += [one("halt", int(opens[t - 1]) + BASE.us + half_us), one("resume", int(opens[t]) + half_us)]
        long = [one("halt", int(opens[BARS - 25]) + half_us), one("resume", int(opens[BARS - 15]))]
        return {
            "x:A": (*halts, *long),
            "x:B": (one("delisting", int(opens[HISTORY + 120]) + half_us, proceeds=0.0),),
            "x:C": (
                one("rename", int(opens[HISTORY + 20]), symbol_before="OLD", symbol="C"),
                one("halt", int(opens[HISTORY + 90])),
                one("delisting", int(opens[HISTORY + 150]), proceeds=41.5),
            ),
        }

    def read(
        self,
        path: str,
        instrument: Instrument,
        timeframe: Timeframe | None = None,
        *,
        reading: Reading | None = None,
        until_us: int = EVER_US,
    ) -> Generator[Series, None, FileReport]:
        """One instrument's bars, as if from a file."""
        a = self.ids.index(instrument.id)
        rows = self.bars.present[:, a]
        names = BAR_COLUMNS
        series = {name: getattr(self.bars, name)[rows, a] for name in names}
        open_us = self.bars.open_us[rows]
        yield {"open_us": open_us, **series}
        first, last = from_us(open_us[0]), from_us(open_us[-1])
        return FileReport(path, {}, (), "", "", BASE, len(open_us), 0, first, last)

    @property
    def features(self) -> Floats:
        bars = {BASE: self.bars, HIGHER: resample(self.bars, BASE, HIGHER)}
        roster = self.universe.roster if self.universe.changes else None
        return STRATEGY.feature_set.compute(bars, BASE, roster).values

    @property
    def traded(self) -> BarArrays:
        return self.bars.slice(HISTORY, BARS)


class Loop:
    """Ingest, preprocess, inference and execution over one bus; what is durable survives a restart."""

    def __init__(
        self,
        market: Market,
        strategy: Strategy = STRATEGY,
        make_actor: Callable[[Policy], Actor] = Formula,
        bus: MemoryBus | None = None,
    ) -> None:
        self.market = market
        self.policies = tuple(policy(market.portfolio, gain, strategy) for gain in (150.0, -150.0))
        self.bus, self._clock = bus or MemoryBus(), ManualClock(from_us(START_US) + timedelta(days=30))
        self._bars, self._features, self._ledger = MemoryBarStore(self._clock), MemoryFeatureStore(), MemoryLedger()
        self._makers: dict[str, Callable[[], Any]] = {
            "ingest": lambda: Ingest(
                self._bars, market.read, BusFrames(self._permitted("ingest")), self._clock, chunk_frames=3
            ),
            "preprocess": lambda: Preprocess(
                [(market.universe, strategy.name)],
                lambda _: strategy,
                self._bars,
                self._features,
                self._clock,
                BusSent(self._permitted("preprocess"), self._clock),
            ),
            "inference": lambda: Inference(
                [market.portfolio],
                lambda _: strategy,
                Versions(*self.policies),
                make_actor,
                BusHistory(self._permitted("inference")),
                self._clock,
            ),
            "execution": lambda: Execution(
                [market.portfolio],
                lambda _: strategy,
                PaperVenue,
                self._ledger,
                ExecutionHistory(self._permitted("execution")),
                self._clock,
            ),
        }
        self.runners = {name: self._start(name) for name in self._makers}
        self._past: list[Runner] = []
        self.send(
            BackfillRequested(request_id="b", universe=market.universe, files=dict.fromkeys(market.ids, "memory"))
        )
        self.run()
        self.send(
            ReplayRequested(
                request_id="r",
                universe=market.universe,
                range=TimeRange(start=from_us(market.traded.open_us[0]), end=from_us(market.traded.close_us[-1])),
            )
        )

    def _start(self, name: str) -> Runner:
        # Commits every few turns only, so that a kill has something to lose.
        policy = RunPolicy(max_records=8, commit_interval_s=7.0)
        return Runner(self._makers[name](), self._permitted(name), self._clock, policy)

    def _permitted(self, name: str) -> Permitted:
        """The bus with the rights that a service has on Kafka."""
        return Permitted(self.bus, name)

    def send(self, message: Message) -> None:
        producer = self.bus.producer()
        publish(producer, message, "test")
        producer.flush()

    def run(self, signals: int | None = None) -> Loop:
        """Until all is quiet, or there are so many signals."""
        while signals is None or self.count(SignalGenerated) < signals:
            busy = sum(runner.step() for runner in self.runners.values())
            self._clock.advance(1.0)
            if not busy:
                assert signals is None, f"quiet after {self.count(SignalGenerated)} of {signals} signals"
                break
        return self

    def restart(self, name: str, *, killed: bool) -> None:
        """Close a service, or let it die before it commits; a new one goes on from what is stored."""
        runner = self.runners[name]
        if killed:
            runner.service = _Dying(runner.service)
        runner.close()
        self._past.append(runner)
        self.runners[name] = self._start(name)

    def count(self, kind: type[Message]) -> int:
        return sum(self.bus.end_offsets(topic_of(kind).name).values())

    def records(self) -> dict[str, list[tuple[int, str, bytes, dict[str, str]]]]:
        """Every record of every topic, retries and dead letters included."""
        aside = [
            of(topic_of(kind).name, runner.service.name)
            for runner in self.runners.values()
            for kind in runner.service.consumes
            for of in (retry_topic, dead_letter_topic)
        ]
        found = {}
        for topic in (*CATALOGUE, *aside):
            with closing(self.bus.consumer("test", [topic])) as consumer:
                found[topic] = [(r.partition, r.key, r.value, dict(r.headers)) for r in consumer.poll(1_000_000)]
        return found

    def read(self, kind: type[M]) -> list[M]:
        """The messages of a kind, once each: what comes again must be the same."""
        seen: dict[str, bytes] = {}
        for _, _, value, headers in self.records()[topic_of(kind).name]:
            assert seen.setdefault(headers["ce_id"], value) == value
        return [kind.model_validate_json(value) for value in seen.values()]

    @property
    def failures(self) -> int:
        counters = [runner.counters for runner in (*self.runners.values(), *self._past)]
        return sum(one.retried + one.dead_letters for one in counters)


class _Dying:
    """A service that nothing of is committed any more."""

    def __init__(self, service: Any) -> None:
        self._service = service

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)

    def before_commit(self, offsets: Mapping[Partition, int]) -> None:
        raise Unavailable("killed")


def live(loop: Loop) -> dict[str, Any]:
    """What happened, in the arrays of a backtest."""
    bars, roster = loop.market.traded, loop.market.universe.roster
    row = {time_us: t for t, time_us in enumerate(bars.close_us.tolist())}
    opened = {time_us: t for t, time_us in enumerate(bars.open_us.tolist())}
    column = {instrument: a for a, instrument in enumerate(bars.instruments)}
    shape = bars.open.shape
    arrays: dict[str, Any] = {name: np.zeros(len(bars)) for name in ("cash", "equity", "rewards")}
    arrays |= {name: np.zeros(shape) for name in ("position", "fill_quantity", "fill_price", "fill_fee")}
    arrays["weights"] = np.full(shape, np.nan)
    marks, signals = loop.read(PortfolioMarked), loop.read(SignalGenerated)
    assert [to_us(mark.time) for mark in marks] == [to_us(signal.time) for signal in signals] == list(row)
    for t, mark in enumerate(marks):
        arrays["cash"][t], arrays["equity"][t] = mark.cash, mark.equity
        arrays["position"][t] = [position.quantity for position in mark.positions]
    for t, signal in enumerate(signals):
        if not signal.hold:
            arrays["weights"][t] = signal.targets
            # What the policy was not shown is left as it is, if it is a member.
            away = [one in signal.hidden for one in bars.instruments]
            arrays["weights"][t, away & roster.inside(bars.close_us[t : t + 1])[0]] = np.nan
    for fill in loop.read(OrderFilled):
        cell = opened[to_us(fill.time)], column[fill.instrument]
        assert arrays["fill_quantity"][cell] == 0.0, "one fill for each order"
        arrays["fill_quantity"][cell] = fill.quantity if fill.side == "buy" else -fill.quantity
        arrays["fill_price"][cell], arrays["fill_fee"][cell] = fill.price, fill.fee
    for transition in loop.read(Transition):
        arrays["rewards"][row[to_us(transition.time)]] = transition.reward
    return arrays


def assert_parity(loop: Loop, expected: BacktestResult) -> None:
    """Exactly equal, in everything that the backtest tells."""
    for name, values in live(loop).items():
        np.testing.assert_array_equal(values, getattr(expected, name), err_msg=name)
    transitions = loop.read(Transition)
    assert len(transitions) == np.isfinite(expected.weights[:-1]).any(axis=1).sum()
    assert {t.components["pnl"] for t in transitions} <= set(expected.components["pnl"].tolist())
    filled = {order.order_id for order in loop.read(OrderUpdated) if order.filled_quantity > 0.0}
    assert filled == {fill.order_id for fill in loop.read(OrderFilled) if not fill.reason}
    assert loop.failures == 0


def expect(loop: Loop) -> BacktestResult:
    market = loop.market
    actor = Formula(loop.policies[0])
    return backtest(market.portfolio, STRATEGY, market.traded, market.features[HISTORY:], actor)


@pytest.fixture(
    params=[(1, False), (4, False), (4, True), (4, False, True)],
    ids=["one instrument", "four instruments", "members change", "events"],
    scope="module",
)
def whole(request: pytest.FixtureRequest) -> Loop:
    """A run without interruption."""
    return Loop(Market(*request.param)).run()


def test_the_loop_equals_the_backtest(whole: Loop) -> None:
    expected = expect(whole)
    assert_parity(whole, expected)
    assert np.count_nonzero(expected.fill_quantity) > 50, "it trades"
    statuses = {order.status for order in whole.read(OrderUpdated)}
    assert statuses >= {"working", "filled", "partially_filled"}
    if len(whole.market.ids) > 1:
        assert "expired" in statuses, "an order met a bar that was missing"
        assert not whole.market.traded.present.all()


def test_only_members_are_held(whole: Loop) -> None:
    """As plain Python has it: what is held at a close was a member when it was decided, or could not be sold yet."""
    market = whole.market
    bars, stays = market.traded, market.universe.members
    frames = [frame for frame in whole.read(BarFrame) if frame.timeframe is BASE]
    if not stays:
        assert market.universe.events or all(frame.outside is None for frame in frames), "all always belong"
        return
    held = live(whole)["position"]
    sold = refused = 0
    for t, frame in enumerate(frames):
        belongs = [
            any(one.start <= frame.close_time and (one.end is None or frame.close_time < one.end) for one in stays[id_])
            if id_ in stays
            else False
            for id_ in market.ids
        ]
        assert frame.outside == tuple(id_ for id_, inside in zip(market.ids, belongs, strict=True) if not inside)
        assert not set(frame.missing) & set(frame.outside)
        if t + 1 < len(frames):
            for a in np.flatnonzero(~np.array(belongs)).tolist():
                assert abs(held[t + 1, a]) <= abs(held[t, a]), "nothing of it is bought"
                if held[t, a] and bars.present[t + 1, a]:
                    sold += 1
                    assert abs(held[t + 1, a]) < abs(held[t, a]), "it is sold as far as the bar's volume takes it"
    verdicts = [one for one in whole.read(RiskVerdict) if one.code == "not_a_member"]
    refused = sum(one.instrument == "x:B" for one in verdicts)
    assert sold >= 2
    assert refused > 100, "what the policy wants of it is counted"
    expected = expect(whole)
    assert len(verdicts) == expected.denials["not_a_member"]
    assert not held[:, 1].any(), "one that never belongs is never held"
    assert all(held[:, a].any() for a in (0, 2, 3))


def test_events_of_instruments_hold_the_book_and_close_it(whole: Loop) -> None:
    """As plain Python has it, bar by bar, from the events and the bars alone."""
    market, bars = whole.market, whole.market.traded
    told = [(one.instrument, one.event) for one in whole.read(InstrumentChanged)]
    every = [(id_, one) for id_, ones in market.universe.events.items() for one in ones]
    assert told == sorted(every, key=lambda each: each[1].time)
    if not every:
        return
    outcome, orders = live(whole), whole.read(OrderUpdated)
    held, filled, price = outcome["position"], outcome["fill_quantity"], outcome["fill_price"]
    seen = dict.fromkeys(("kept", "shut", "settled"), 0)
    for a, id_ in enumerate(market.ids):
        for t in range(1, len(bars)):
            past = [one for one in market.universe.events.get(id_, ()) if one.kind != "rename"]
            at_open, at_close = (
                [one for one in past if to_us(one.time) <= time_us]
                for time_us in (bars.open_us[t], bars.close_us[t - 1])
            )
            if at_open and at_open[-1].kind == "delisting":
                assert filled[t, a] == -held[t - 1, a]
                assert held[t, a] == 0.0
                assert price[t, a] == (at_open[-1].proceeds if held[t - 1, a] else 0.0)
                seen["settled"] += held[t - 1, a] != 0.0
            elif (at_open and at_open[-1].kind == "halt") or (at_close and at_close[-1].kind != "resume"):
                assert held[t, a] == held[t - 1, a], "no order fills in a halt, nor one that was decided in it"
                seen["kept"] += held[t, a] != 0.0
            if at_open and at_open[-1].kind != "resume":
                of_it = [
                    one for one in orders if one.instrument == id_ and to_us(one.decision_time) == bars.close_us[t - 1]
                ]
                assert {one.status for one in of_it} <= {"working", "expired"}
                assert {one.reason for one in of_it if one.status == "expired"} <= {"trading_halted", "delisted"}
                seen["shut"] += bool(of_it)
    assert seen["settled"] == 2, "both that are delisted were held"
    assert seen["kept"] > 60
    assert seen["shut"] >= 3, "orders met a halt that began while the market rested"
    assert {(fill.instrument, fill.price, fill.fee) for fill in whole.read(OrderFilled) if fill.reason} == {
        ("x:B", 0.0, 0.0),
        ("x:C", 41.5, 0.0),
    }
    denied = [one.code for one in whole.read(RiskVerdict)]
    expected = expect(whole).denials
    for code in ("trading_halted", "delisted"):
        assert denied.count(code) == expected[code] > 20
    for frame in whole.read(BarFrame):
        assert not {*frame.missing} & {*frame.halted, *frame.shut, *(frame.outside or ())}


def test_live_features_are_those_of_the_batch(whole: Loop) -> None:
    computed = whole.read(FeaturesComputed)
    rows = [[[np.nan if x is None else x for x in row] for row in one.values] for one in computed]
    np.testing.assert_array_equal(np.array(rows), whole.market.features[HISTORY:])


def test_the_same_run_again_gives_the_same_bytes(whole: Loop) -> None:
    again = Loop(whole.market).run().records()
    first = whole.records()
    assert again == first
    assert {topic for topic in first if first[topic]} < set(CATALOGUE), "nothing was set aside"
    assert len(first["experience.transitions.v1"]) > 150


def kinds(value: Any) -> Any:
    """The types of all values within a value."""
    if isinstance(value, Mapping):
        return {name: kinds(part) for name, part in value.items()}
    return [type(value), *map(kinds, value)] if isinstance(value, tuple | list) else type(value)


def test_objects_that_are_handed_over_are_what_their_bytes_say(whole: Loop) -> None:
    handing = Loop(whole.market, bus=MemoryBus(hands_over=True)).run()
    assert handing.records() == whole.records()
    for topic, kind in ((topic.name, topic.message) for topic in CATALOGUE.values()):
        handed = [record for record in all_records(handing.bus, topic) if record.message is not None]
        for record in handed:
            assert isinstance(record.message, kind)
            decoded = kind.model_validate_json(record.value)
            assert record.message == decoded
            assert kinds(record.message.model_dump()) == kinds(decoded.model_dump())
        assert bool(handed) == bool(whole.count(kind))


@pytest.mark.parametrize("killed", [False, True], ids=["closed", "killed"])
@pytest.mark.parametrize("service", ["ingest", "preprocess", "inference", "execution"])
def test_a_restart_changes_nothing(whole: Loop, service: str, killed: bool) -> None:
    """Again and again, at any point of the loop's turn."""
    loop = Loop(whole.market)
    for signals in (1, 5, 23, 24, 90, 171):
        loop.run(signals).restart(service, killed=killed)
    loop.run()
    assert_parity(loop, expect(loop))
    for kind in (OrderUpdated, OrderFilled, PortfolioMarked, SignalGenerated, Transition):
        assert loop.read(kind) == whole.read(kind)


def test_all_restart_at_once(whole: Loop) -> None:
    loop = Loop(whole.market)
    for signals in (2, 60, 140):
        loop.run(signals)
        for service in ("execution", "inference", "preprocess", "ingest"):
            loop.restart(service, killed=signals > 2)
    loop.run()
    assert_parity(loop, expect(loop))


def test_a_model_that_takes_over_is_recorded_and_honoured_by_the_backtest(whole: Loop) -> None:
    loop = Loop(whole.market).run(100)
    universe = loop.market.universe
    loop.send(
        ModelReady(
            request_id="t",
            strategy="formula",
            universe=universe.name,
            model=f"formula-{universe.name}",
            version="2",
            alias="champion",
            model_id=loop.policies[1].model_id,
            feature_set=STRATEGY.feature_set.id,
        )
    )
    loop.run()
    first, second = loop.read(ModelActivated)
    close_us = loop.market.traded.close_us
    assert to_us(first.time) == close_us[0]
    # Its mark may have been on the way already.
    assert to_us(second.time) in close_us[100:102], "the bar after the last one that was decided"
    assert (first.model_id, second.model_id) == tuple(one.model_id for one in loop.policies)
    by_model = {signal.time: signal.model_version for signal in loop.read(SignalGenerated) if not signal.hold}
    assert all(version == ("1" if time < second.time else "2") for time, version in by_model.items())

    features, hidden = shown(loop.market.features[HISTORY:], universe)
    inside = universe.roster.inside(close_us)
    actors = [Formula(one) for one in loop.policies]
    builder = ObservationBuilder(STRATEGY.window, len(loop.market.ids), FEATURES)
    actions: list[Floats] = []

    def decide(t: int, account: Floats) -> Floats:
        if np.isnan(features[t]).any():
            builder.clear()
        else:
            builder.append(STRATEGY.observed(features[t]))
        if not builder.ready:
            actions.append(np.zeros((1, len(loop.market.ids))))
            return np.full((1, len(loop.market.ids)), np.nan)
        actions.append(actors[int(close_us[t] >= to_us(second.time))].act(builder.build(account)))
        weights = STRATEGY.actions.weights(actions[-1])
        return weights if hidden is None else np.where(hidden[t] & inside[t], np.nan, weights)

    switching = backtests.run(loop.market.portfolio, STRATEGY, loop.market.traded, features, decide, actions)
    assert_parity(loop, switching)
    assert switching.final_equity != expect(loop).final_equity
    completed = loop.read(BackfillCompleted)
    assert [one.bars for one in completed] == [int(loop.market.bars.present.sum())]
