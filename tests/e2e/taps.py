"""Taps on everything that a service calls: each call is a point at which a fault can be put in.

Nothing is listed by hand. Whatever object a service is given, and whatever object comes out of that, is wrapped, so
that a new method of a port is a new point by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import GeneratorType
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel

from tradeloop.common.bus.port import BusUnavailable, MessageTooLarge, Partition
from tradeloop.common.clock import ManualClock
from tradeloop.common.errors import Unavailable
from tradeloop.common.messages.topics import CATALOGUE

Kind = Literal["exception", "nan", "unavailable", "unanswered", "too large", "killed", "killed after", "slow"]
"""`unanswered`: it is done, but the answer is lost. `killed`: before it is done, or after."""

OUTAGE_S = 20.0
"""How long something is away that is away for long."""
SLOW_S = 3600.0
"""How long a slow call takes."""


class Injected(Exception):
    """A fault that was put in: nobody's own."""


class Killed(BaseException):
    """The process dies here. No handler may catch it."""


class Point(NamedTuple):
    """A call that a service makes, or that is made to it."""

    service: str
    call: str
    """The path to the method from what the service was given, and the topic that it is about."""


@dataclass(frozen=True)
class Fault:
    """A fault at a point."""

    point: Point
    kind: Kind
    lasts: Literal["once", "long", "good"] = "once"
    first: int = 0
    """The number of the call at which it begins: of those that are about the victim, or else about nobody."""

    def __str__(self) -> str:
        return f"{self.point.service} {self.point.call}: {self.kind} ({self.lasts}, at call {self.first})"


@dataclass
class Seen:
    """What is known of a point from an undisturbed run."""

    victims: int = 0
    """Calls that are about the victim."""
    shared: int = 0
    """Calls that are about nobody."""
    numbers: bool = False
    """Whether it answers with numbers."""
    messages: set[str] = field(default_factory=set)
    """The messages that were being worked on."""

    @property
    def count(self) -> int:
        return self.victims or self.shared


class Names:
    """Whom a call is about, by the names in its arguments: the portfolios that a name belongs to."""

    def __init__(self, own: Mapping[str, str], common: Mapping[str, Collection[str]]) -> None:
        """`own` gives the portfolio of a name that belongs to one alone, `common` those of a universe's names."""
        self._own, self._common = own, {name: frozenset(portfolios) for name, portfolios in common.items()}
        self._bytes = {name: f'"{name}"'.encode() for name in (*own, *common)}

    def of(self, *values: object) -> frozenset[str]:
        """The portfolios whose own names are in these values; else those of the universes that are."""
        found = frozenset(self._find(values, 5))
        own = frozenset(self._own[name] for name in found if name in self._own)
        return own or frozenset().union(*(self._common[name] for name in found))

    def _find(self, value: object, depth: int) -> Iterator[str]:
        if isinstance(value, str):
            if value in self._own or value in self._common:
                yield value
        elif isinstance(value, bytes):
            yield from (name for name, quoted in self._bytes.items() if quoted in value)
        elif depth:
            if isinstance(value, BaseModel):
                value = list(value.__dict__.values())
            elif dataclasses.is_dataclass(value):
                value = [getattr(value, one.name) for one in dataclasses.fields(value)]
            if isinstance(value, Mapping):
                value = [*value.keys(), *value.values()]
            if isinstance(value, list | tuple | set | frozenset):
                for one in value:
                    yield from self._find(one, depth - 1)


@dataclass
class Life:
    """One process of a service, until it is killed."""

    service: str
    over: bool = False


class Probe:
    """Sees every call of a run, and puts one fault in."""

    def __init__(self, names: Names, victim: str, clock: ManualClock, fault: Fault | None = None) -> None:
        self._names, self._victim, self._clock, self.fault = names, victim, clock, fault
        self.seen: dict[Point, Seen] = {}
        self.at_work: dict[str, set[str]] = {}
        """The kinds of messages that each service took in last."""
        self.hit: set[str] = set()
        """The portfolios that calls were about which failed."""
        self.fired = 0
        self._shared = False
        self._count = 0
        self._until_s: float | None = None

    @property
    def is_out(self) -> bool:
        """Whether something is away now, and for long."""
        return self._until_s is not None and self._clock.monotonic() < self._until_s

    def aim(self, seen: Seen) -> None:
        """Let the fault be that of calls about nobody, where none is about the victim."""
        self._shared = not seen.victims

    def tap(self, value: Any, life: Life, path: str, owners: frozenset[str] = frozenset()) -> Any:
        """A value whose calls are seen; plain data is as it is."""
        if _is_data(value):
            return value
        if isinstance(value, Generator):
            return self._steps(value, life, f"{path} next", owners)
        return _Tap(self, value, life, path, owners)

    def call(
        self, life: Life, path: str, owners: frozenset[str], function: Callable[..., Any], args: Any, named: Any
    ) -> Any:
        """Call through, with the fault where it belongs."""
        if life.over:
            raise Unavailable("this process is dead")
        fault = self.fault
        if fault is None:
            about = self._names.of(args, named) or owners
            seen = self.seen.setdefault(Point(life.service, _about(path, args)), Seen())
            seen.victims += self._victim in about
            seen.shared += not about
            seen.messages |= self.at_work.get(life.service, set())
            answer = function(*args, **named)
            seen.numbers = seen.numbers or _spoiled(answer) is not answer
        elif not (life.service == fault.point.service and fault.point.call.startswith(path)):
            # Nor can it begin in what comes of this call.
            answer, about = function(*args, **named), owners
            if type(answer) is GeneratorType:
                return answer
        else:
            about = self._names.of(args, named) or owners
            if fault.point.call == _about(path, args) and self._begins(about):
                self.fired += 1
                self.hit |= about
                answer = self._fail(fault.kind, path, args, lambda: function(*args, **named))
            else:
                answer = function(*args, **named)
        return answer if _is_data(answer) else self.tap(answer, life, f"{path}()", about)

    def _begins(self, about: frozenset[str]) -> bool:
        fault = self.fault
        assert fault is not None
        if bool(about) == self._shared or (about and self._victim not in about):
            return False
        self._count += 1
        if self._count <= fault.first:
            return False
        if fault.lasts == "once":
            return self._count == fault.first + 1
        if fault.lasts == "long":
            if self._until_s is None:
                self._until_s = self._clock.monotonic() + OUTAGE_S
            return self.is_out
        return True

    def _fail(self, kind: Kind, path: str, args: Sequence[Any], call: Callable[[], Any]) -> Any:
        if kind == "exception":
            raise Injected("of its own making")
        if kind == "too large" and b'"error":"Message' not in args[2]:  # what is sent instead says why, and is small
            raise MessageTooLarge("larger than the bus takes")
        if kind == "killed":
            raise Killed
        if kind == "unavailable":
            raise _away(path)
        if kind == "slow":
            self._clock.advance(SLOW_S)
        answer = call()
        if kind == "unanswered":
            raise _away(path)
        if kind == "killed after":
            raise Killed
        return _spoiled(answer) if kind == "nan" else answer

    def _steps(
        self, inner: Generator[Any, None, Any], life: Life, path: str, owners: frozenset[str]
    ) -> Generator[Any, None, Any]:
        ended = object()
        result: list[Any] = []

        def step() -> Any:
            try:
                return next(inner)
            except StopIteration as end:
                result.append(end.value)
                return ended

        try:
            while (answer := self.call(life, path, owners, step, (), {})) is not ended:
                yield answer
            return result[0]
        finally:
            inner.close()


class _Tap:
    """Stands for an object, and passes as one of its class."""

    def __init__(self, probe: Probe, inner: Any, life: Life, path: str, owners: frozenset[str]) -> None:
        self._tap = probe, inner, life, path, owners

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return self._tap[1].__class__

    def __getattr__(self, name: str) -> Any:
        probe, inner, life, path, owners = self._tap
        value = getattr(inner, name)
        if not callable(value):
            return value

        def called(*args: Any, **named: Any) -> Any:
            return probe.call(life, f"{path}.{name}", owners, value, args, named)

        return called

    def __call__(self, *args: Any, **named: Any) -> Any:
        probe, inner, life, path, owners = self._tap
        return probe.call(life, path, owners, inner, args, named)


def _is_data(value: Any) -> bool:
    kind = type(value)
    if kind is _Tap:
        return _looks_like_data(value)
    found = _DATA.get(kind)
    if found is None:
        found = _DATA[kind] = _looks_like_data(value)
    return found


_DATA: dict[type, bool] = {}
"""Of each type, whether its values are data: with a million calls a minute nobody looks at each anew."""


def _looks_like_data(value: Any) -> bool:
    if value is None or isinstance(value, str | bytes | int | float | np.ndarray | np.generic | BaseModel | Enum):
        return True
    if isinstance(value, Generator):
        return False
    if isinstance(value, Iterable | BaseException):
        return True
    if callable(value):
        return False
    return type(value).__module__.split(".")[0] not in ("tradeloop", "tests", "__main__") or _is_record(value)


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) or isinstance(value, ManualClock)


def _about(path: str, args: Sequence[Any]) -> str:
    """A path with the topic that its call is about, or the message."""
    first = args[0] if args else None
    if isinstance(first, Partition):
        first = first.topic
    if isinstance(first, str) and first in CATALOGUE:
        return f"{path} {first}"
    if path in ("service.handle", "service.answers") and isinstance(first, BaseModel):
        return f"{path} {type(first).__name__}"
    return path


def _away(path: str) -> Unavailable:
    return BusUnavailable("the bus is away") if path.startswith("bus") else Unavailable(f"{path} is away")


def _spoiled(value: Any) -> Any:
    """An answer with NaN for every number in it; the same object where there is none."""
    if isinstance(value, float):
        return float("nan")
    if isinstance(value, np.ndarray):
        return np.full_like(value, np.nan) if value.dtype.kind == "f" and value.size else value
    if isinstance(value, list | tuple) and value and type(value) in (list, tuple):
        spoiled = [_spoiled(one) for one in value]
        return type(value)(spoiled) if any(a is not b for a, b in zip(spoiled, value, strict=True)) else value
    if type(value) is dict:
        fresh = {key: _spoiled(one) for key, one in value.items()}
        return fresh if any(fresh[key] is not value[key] for key in value) else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {one.name: getattr(value, one.name) for one in dataclasses.fields(value) if one.init}
        changed = {name: new for name, part in parts.items() if (new := _spoiled(part)) is not part}
        return dataclasses.replace(value, **changed) if changed else value
    return value
