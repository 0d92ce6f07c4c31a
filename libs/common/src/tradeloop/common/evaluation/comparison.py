"""Two runs of the same portfolios over the same bars, compared message by message: live and its replay."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from tradeloop.common.bus.port import Bus
from tradeloop.common.evaluation.parity import TOLERANCE
from tradeloop.common.market import from_us, to_us
from tradeloop.common.messages import (
    OrderFilled,
    OrderUpdated,
    PortfolioEvent,
    PortfolioMarked,
    SignalGenerated,
    Transition,
)
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.readback import forwards, partition_of

Compared = SignalGenerated | OrderUpdated | OrderFilled | Transition | PortfolioMarked
_KINDS: dict[str, type[Compared]] = {
    "signals": SignalGenerated,
    "orders": OrderUpdated,
    "fills": OrderFilled,
    "transitions": Transition,
    "equity by bar": PortfolioMarked,
}


class _Fact(NamedTuple):
    """The part that is kept of a message: a month of minutes would not fit as a whole."""

    time_us: int
    offset: int
    digest: bytes
    equity: float
    portfolio: str


@dataclass(frozen=True)
class KindComparison:
    """One kind of message in both runs, by id."""

    kind: type[Compared]
    live: dict[str, _Fact]
    replay: dict[str, _Fact]
    expired: bool
    """Whether the live run's older messages are gone; what is older than its oldest is then not compared."""
    never_came: int = 0
    """Messages of the replay that live may lack, and does: signals for decisions that are on record as missed."""

    @property
    def missing(self) -> set[str]:
        """Only live has them."""
        return self.live.keys() - self.replay.keys()

    @property
    def extra(self) -> set[str]:
        """Only the replay has them."""
        return self.replay.keys() - self.live.keys()

    @property
    def different(self) -> set[str]:
        """Both have them, with other contents; of marks the equity counts, up to `TOLERANCE`."""
        both = self.live.keys() & self.replay.keys()
        if self.kind is PortfolioMarked:
            return {one for one in both if self.equity_difference(one) > TOLERANCE}
        return {one for one in both if self.live[one].digest != self.replay[one].digest}

    def equity_difference(self, one: str) -> float:
        """Relative to the live equity."""
        live, replay = self.live[one].equity, self.replay[one].equity
        return abs(replay - live) / abs(live) if live else abs(replay - live)

    @property
    def first(self) -> tuple[int, str] | None:
        """Time and id of the first message that is not the same in both."""
        wrong = self.missing | self.extra | self.different
        return min(((self.live.get(one) or self.replay[one]).time_us, one) for one in wrong) if wrong else None


class RunComparison:
    """A live run and its replay, each on its bus, compared from the close of a first bar to that of a last one."""

    def __init__(self, live: Bus, replay: Bus, portfolios: Sequence[Portfolio], first_us: int, last_us: int) -> None:
        self._live, self._replay = live, replay
        self._universe = portfolios[0].universe.name
        names = frozenset(portfolio.name for portfolio in portfolios)
        self.kinds = {name: self._compare(kind, names, first_us, last_us) for name, kind in _KINDS.items()}

    @property
    def holds(self) -> bool:
        """Whether both runs did the same."""
        return all(each.first is None for each in self.kinds.values())

    @property
    def equity_difference(self) -> float:
        """The largest relative one of a bar that both runs marked."""
        marks = self.kinds["equity by bar"]
        return max(map(marks.equity_difference, marks.live.keys() & marks.replay.keys()), default=0.0)

    def lines(self) -> Iterator[str]:
        """The report below the table."""
        yield f"Largest relative difference of equity: {self.equity_difference:.1e}"
        for name, each in self.kinds.items():
            if each.expired:
                since = min((fact.time_us for fact in each.live.values()), default=None)
                which = "any more" if since is None else f"before {from_us(since).isoformat()}"
                yield f"Not compared: live's {name} {which}, which Kafka no longer holds"
            if each.never_came:
                such = f"{each.never_came:,} of the replay's {name}"
                yield f"Not compared: {such}, for decisions that live missed without one"
        if self.holds:
            yield "Parity holds: the replay did what live did"
        else:
            yield f"Parity is broken. The first difference: {self._first_difference()}"

    def _compare(self, kind: type[Compared], names: Collection[str], first_us: int, last_us: int) -> KindComparison:
        partition = partition_of(self._live, topic_of(kind).name, self._universe)
        expired = self._live.begin_offsets(partition.topic)[partition] > 0
        live = self._facts(self._live, kind, names, first_us, last_us)
        if expired:
            first_us = min((fact.time_us for fact in live.values()), default=last_us + 1)
        replay = self._facts(self._replay, kind, names, first_us, last_us)
        missed = self._missed() if kind is SignalGenerated else frozenset()
        never_came = {
            one for one in replay.keys() - live.keys() if (replay[one].portfolio, replay[one].time_us) in missed
        }
        compared = {one: fact for one, fact in replay.items() if one not in never_came}
        return KindComparison(kind, live, compared, expired, len(never_came))

    def _missed(self) -> frozenset[tuple[str, int]]:
        """The decisions that live missed, by portfolio and time. Their signals came late, where they came at all."""
        events = (event for _, event in forwards(self._live, PortfolioEvent, self._universe))
        return frozenset((each.portfolio, to_us(each.time)) for each in events if each.kind == "decision_missed")

    def _facts(
        self, bus: Bus, kind: type[Compared], names: Collection[str], first_us: int, last_us: int
    ) -> dict[str, _Fact]:
        facts = {}
        for record, message in forwards(bus, kind, self._universe):
            time_us = _time_us(message)
            # What became of the last decision shows on a bar that lies behind the range.
            end_us = last_us - 1 if _is_outcome(message) else last_us
            if message.portfolio in names and first_us <= time_us <= end_us:
                digest = blake2b(message.encode(), digest_size=16).digest()
                equity = message.equity if isinstance(message, PortfolioMarked) else 0.0
                facts[message.identity] = _Fact(time_us, record.offset, digest, equity, message.portfolio)
        return facts

    def _first_difference(self) -> str:
        firsts = [(first, name) for name, each in self.kinds.items() if (first := each.first) is not None]
        order = list(self.kinds)
        (_, one), name = min(firsts, key=lambda found: (found[0][0], order.index(found[1])))
        each = self.kinds[name]
        live = self._message(self._live, each.kind, each.live.get(one))
        replay = self._message(self._replay, each.kind, each.replay.get(one))
        if live is None or replay is None:
            there, absent = ("live", "the replay") if replay is None else ("the replay", "live")
            return f"{_what(live or replay)}: {there} has it, {absent} has not"
        for field in each.kind.model_fields:
            was, now = getattr(live, field), getattr(replay, field)
            if was != now:
                return f"{_what(live)}: {field} is {_short(was)} live and {_short(now)} in the replay"
        raise AssertionError("messages of different bytes have a different field")

    def _message(self, bus: Bus, kind: type[Compared], fact: _Fact | None) -> Compared | None:
        if fact is None:
            return None
        partition = partition_of(bus, topic_of(kind).name, self._universe)
        (record,) = bus.read(partition, fact.offset, fact.offset + 1)
        return kind.model_validate_json(record.value)


def _time_us(message: Compared) -> int:
    """The close of the bar that a message belongs to."""
    if isinstance(message, SignalGenerated | PortfolioMarked):
        return to_us(message.time)
    return to_us(message.decision_time)


def _is_outcome(message: Compared) -> bool:
    """Whether it is known only on the bar after the decision."""
    if isinstance(message, OrderUpdated):
        return message.status != "working"
    return isinstance(message, OrderFilled | Transition)


def _what(message: Compared | None) -> str:
    if message is None:
        raise AssertionError("one of the two runs has it")
    at = f"{message.portfolio}, {from_us(_time_us(message)):%Y-%m-%d %H:%M} UTC"
    if isinstance(message, OrderUpdated | OrderFilled):
        kind = "order" if isinstance(message, OrderUpdated) else "fill"
        return f"{kind} of {at}: {message.side} {message.quantity:g} {message.instrument}"
    return f"{topic_of(type(message)).message.__name__} of {at}"


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, str) else value
    return text if len(text) <= 120 else f"{text[:117]}..."
