"""What a feature is, and the kinds there are. Each kind has two forms of the same arithmetic: batch and state.

Bars come as columns, (5, n) float64 with contiguous rows in the order of `FIELDS`, or one at a time as a `Row`.
They are the bars an instrument really has: a bar that is missing does not stand in them.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import math
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from talib import InsufficientHistory, get_functions  # type: ignore[attr-defined]  # exported, but its stubs forget it
from talib import stream as handles
from talib.abstract import Function  # type: ignore[attr-defined]

from tradeloop.common.errors import UserError
from tradeloop.common.market import BAR_PRICES, Timeframe

Floats = NDArray[np.float64]
Row = tuple[float, float, float, float, float]
"""One bar of one instrument: open, high, low, close, volume. Volume is NaN where the source gives none."""

FIELDS = (*BAR_PRICES, "volume")
_CLOSE = FIELDS.index("close")

ANCHOR_BARS = 512
"""Bars of event time between anchors. More makes the batch faster, fewer makes recovery read less."""

_FUNCTIONS: list[str] = get_functions()  # type: ignore[no-untyped-call]

_FORGETTING_PERIODS, _FORGETTING_BARS = 26, 384
"""An average with smoothing 1/period has forgotten where it began after 26 periods: (1 - 1/p)^(26 p) < 6e-12.
Functions that hide their periods (HT_*, MACDFIX, the amplified STOCHRSI) were measured to need up to 384 bars."""

_CUMULATIVE = frozenset(
    ("AD", "CUMSUM", "MAXINDEX", "MININDEX", "MINMAXINDEX", "NVI", "OBV", "PVI", "PVT", "VWAP", "WAD")
)
"""TA-Lib functions whose value depends on where the series starts, however long ago that was."""


class FeatureError(UserError):
    """A feature is defined wrongly, or the bars cannot give it."""


class FeatureState(Protocol):
    """A feature carried forward one bar at a time."""

    def open(self, columns: Floats) -> float:
        """Begin anew with these bars, (5, n), n >= 0; the value at the last, NaN when there are too few."""
        ...

    def update(self, row: Row) -> float:
        """Take the next bar; the value at it, NaN while warming up."""
        ...


@dataclass(frozen=True, kw_only=True)
class Feature(ABC):
    """A named number for every bar, computed from an instrument's bars up to and including that one."""

    name: str
    definition: str
    """All that the values depend on, as canonical text."""
    history: int
    """Bars before an anchor from which the feature is restarted there."""
    inputs: tuple[str, ...]
    """Which `FIELDS` it reads."""
    timeframe: Timeframe | None = None
    """The higher timeframe it is computed on; None for the base."""

    @abstractmethod
    def batch(self, columns: Floats, blocks: Sequence[int]) -> Floats:
        """Values (n,) for all bars. `blocks` are the indices of the first bars after each anchor, then n."""

    @abstractmethod
    def state(self) -> FeatureState:
        """The same feature bar by bar, not opened yet."""


def log_return(n: int) -> Feature:
    """Natural logarithm of the close over the close `n` bars ago."""
    _require_count("log_return", "n", n)
    return _LogReturn(name=f"log_return_{n}", definition=_canonical(log_return=n), history=n, inputs=("close",), lag=n)


def talib(
    function: str, *, output: str | None = None, inputs: Sequence[str] | None = None, **parameters: float
) -> Feature:
    """A TA-Lib function of the bars, e.g. `talib("RSI", timeperiod=14)`.

    `inputs` are the bar fields it reads, in the function's own order; its defaults when left out. A function of
    several outputs needs `output`. Raises `FeatureError`, also for cumulative functions such as OBV.
    """
    if function not in _FUNCTIONS:
        close = difflib.get_close_matches(function.upper(), _FUNCTIONS, n=1)
        hint = f"did you mean {close[0]}?" if close else "talib.get_functions() lists them"
        raise FeatureError(f"TA-Lib has no function {function!r}: {hint}")
    if function in _CUMULATIVE:
        raise FeatureError(
            f"{function} depends on where its series starts, so it has no value that a restart could repeat: "
            "take its change over a number of bars instead, computed with windowed(...)"
        )
    info = Function(function)
    for name in parameters:
        if name not in info.parameters:
            raise FeatureError(
                f"{function} has no parameter {name!r}: its parameters are {', '.join(info.parameters) or 'none'}"
            )
    try:
        info.set_parameters(parameters)
    except TypeError as error:
        raise FeatureError(f"{function}: {error}") from None
    if info.lookback < 0:
        raise FeatureError(f"{function} refuses {_arguments(info.parameters)}: a value is out of its range")
    fields = _fields(function, _flat(info.info["input_names"].values()), inputs)
    outputs = list(info.output_names)
    if output is None and len(outputs) > 1:
        raise FeatureError(f"{function} has several outputs: choose one with output=, of {', '.join(outputs)}")
    if output is not None and output not in outputs:
        raise FeatureError(f"{function} has no output {output!r}: it has {', '.join(outputs)}")
    periods = [int(value) for name, value in info.parameters.items() if "period" in name]
    needed = info.lookback + max([_FORGETTING_BARS, *(_FORGETTING_PERIODS * period for period in periods)])
    history = -(-needed // 64) * 64
    arguments = dict(info.parameters)
    words = [
        function.lower(),
        *map(_word, arguments.values()),
        *([output] if output is not None and len(outputs) > 1 else []),
        *(inputs or ()),
    ]
    return _TaLib(
        name="_".join(words),
        definition=_canonical(talib=function, arguments=arguments, output=output, inputs=fields, history=history),
        history=history,
        inputs=fields,
        function=function,
        arguments=tuple(arguments.items()),
        output=outputs.index(output) if output is not None and len(outputs) > 1 else None,
        lookback=info.lookback,
    )


def windowed(name: str, fn: Callable[..., Any], window: int, inputs: Sequence[str] = ("close",)) -> Feature:
    """The author's own function of the last `window` bars.

    `fn` gets each input by name, as a read-only (window,) float64 array, oldest first, and returns a number; NaN
    says that there is none. It must depend on nothing else. It is identified by its own source: when something
    that it calls changes, give the feature a new name. Raises `FeatureError`.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise FeatureError(f"windowed feature {name!r}: a name is lower-case letters, digits and _")
    _require_count(f"windowed feature {name}", "window", window)
    fields = _fields(f"windowed feature {name}", tuple(inputs), None)
    return _Windowed(
        name=name,
        definition=_canonical(windowed=name, source=_source_hash(name, fn), window=window, inputs=fields),
        history=window - 1,
        inputs=fields,
        fn=fn,
        window=window,
    )


def relative(feature: Feature) -> Feature:
    """Close over the feature, less 1: turns a price level, such as a moving average, into a stationary number."""
    if feature.timeframe is not None:
        raise FeatureError(
            f"relative({feature.name}): say on({feature.timeframe.value!r}, relative(...)), "
            "so that level and close are of one timeframe"
        )
    return _Relative(
        name=f"relative_{feature.name}",
        definition=_canonical(relative=feature.definition),
        history=feature.history,
        inputs=tuple(dict.fromkeys((*feature.inputs, "close"))),
        level=feature,
    )


def on(timeframe: Timeframe | str, feature: Feature) -> Feature:
    """The feature on a higher timeframe, as of the last of its bars that closed at or before the base bar's close."""
    if timeframe not in set(Timeframe):
        raise FeatureError(f"on({timeframe!r}): the timeframes are {', '.join(Timeframe)}")
    if feature.timeframe is not None:
        raise FeatureError(f"on({timeframe!r}, {feature.name}): the feature is on {feature.timeframe} already")
    return replace(feature, name=f"{Timeframe(timeframe)}_{feature.name}", timeframe=Timeframe(timeframe))


@dataclass(frozen=True, kw_only=True)
class _LogReturn(Feature):
    lag: int

    def batch(self, columns: Floats, blocks: Sequence[int]) -> Floats:
        close = columns[_CLOSE]
        values = np.full(len(close), np.nan)
        # math.log and not np.log, whose vector and scalar forms may differ in the last bit.
        ratios = (close[self.lag :] / close[: -self.lag]).tolist()
        values[self.lag :] = [math.log(ratio) for ratio in ratios]
        return values

    def state(self) -> FeatureState:
        return _LogReturnState(self.lag)


class _LogReturnState:
    def __init__(self, lag: int) -> None:
        self._lag = lag
        self._closes: deque[float] = deque(maxlen=lag + 1)

    def open(self, columns: Floats) -> float:
        self._closes.clear()
        self._closes.extend(columns[_CLOSE, max(0, columns.shape[1] - self._lag - 1) :].tolist())
        return self._value()

    def update(self, row: Row) -> float:
        self._closes.append(row[_CLOSE])
        return self._value()

    def _value(self) -> float:
        closes = self._closes
        return math.log(closes[-1] / closes[0]) if len(closes) > self._lag else math.nan


@dataclass(frozen=True, kw_only=True)
class _TaLib(Feature):
    function: str
    arguments: tuple[tuple[str, float], ...]
    output: int | None
    """Which of several outputs; None when there is one."""
    lookback: int

    def batch(self, columns: Floats, blocks: Sequence[int]) -> Floats:
        values = np.full(columns.shape[1], np.nan)
        open_and_fill = getattr(handles, self.function).open_and_fill
        for start, stop in pairwise(blocks):
            begin = max(0, start - self.history)
            if stop - begin <= self.lookback:
                continue
            try:
                handle, filled = open_and_fill(*self._series(columns[:, begin:stop]), **dict(self.arguments))
            except InsufficientHistory:
                continue
            first = max(start, begin + handle.out_range.begidx)  # integer outputs are 0, not NaN, before it
            values[first:stop] = (filled if self.output is None else filled[self.output])[first - begin :]
        return values

    def state(self) -> FeatureState:
        return _TaLibState(self)

    def handle(self, columns: Floats) -> Any:
        """A TA-Lib handle opened on these bars. Raises `InsufficientHistory`."""
        return getattr(handles, self.function)(*self._series(columns), **dict(self.arguments))

    def _series(self, columns: Floats) -> list[Floats]:
        return list(columns[[FIELDS.index(field) for field in self.inputs]])


class _TaLibState:
    def __init__(self, feature: _TaLib) -> None:
        self._feature, self._output = feature, feature.output
        self._columns = [FIELDS.index(field) for field in feature.inputs]
        self._warming_up = np.empty((len(FIELDS), 0))
        self._handle: Any = None

    def open(self, columns: Floats) -> float:
        self._warming_up, self._handle = columns, None
        if columns.shape[1] > self._feature.lookback:
            try:
                self._handle = self._feature.handle(columns)
            except InsufficientHistory:
                return math.nan
            return self._value(self._handle.value)
        return math.nan

    def update(self, row: Row) -> float:
        if self._handle is None:
            return self.open(np.column_stack((self._warming_up, row)))
        return self._value(self._handle.update(*[row[column] for column in self._columns]))

    def _value(self, value: Any) -> float:
        return float(value if self._output is None else value[self._output])


@dataclass(frozen=True, kw_only=True)
class _Windowed(Feature):
    fn: Callable[..., Any]
    window: int

    def batch(self, columns: Floats, blocks: Sequence[int]) -> Floats:
        # One call a bar, as in the stream: over two axes NumPy and BLAS may order their sums differently, and the
        # last bits of a value would depend on how many bars were asked for at once.
        values = np.full(columns.shape[1], np.nan)
        series = columns[[FIELDS.index(field) for field in self.inputs]]
        series.flags.writeable = False
        for stop in range(self.window, columns.shape[1] + 1):
            values[stop - 1] = self.call(series[:, stop - self.window : stop])
        return values

    def state(self) -> FeatureState:
        return _WindowedState(self)

    def call(self, series: Floats) -> float:
        """The function of one window, (inputs, window)."""
        value = self.fn(**dict(zip(self.inputs, series, strict=True)))
        if np.ndim(value):
            raise FeatureError(
                f"feature {self.name}: its function returned an array of shape {np.shape(value)} for one window; "
                "let it return one number, e.g. by reducing over axis=-1"
            )
        return float(value)


class _WindowedState:
    """Bars are written into a buffer of twice the window, so that the window is always one contiguous slice."""

    def __init__(self, feature: _Windowed) -> None:
        self._feature, self._window = feature, feature.window
        self._columns = [FIELDS.index(field) for field in feature.inputs]
        self._buffer = np.empty((len(self._columns), 2 * feature.window))
        self._series = self._buffer.view()
        self._series.flags.writeable = False
        self._end = 0

    def open(self, columns: Floats) -> float:
        tail = columns[self._columns, max(0, columns.shape[1] - self._window) :]
        self._end = tail.shape[1]
        self._buffer[:, : self._end] = tail
        return self._value()

    def update(self, row: Row) -> float:
        if self._end == self._buffer.shape[1]:
            self._buffer[:, : self._window - 1] = self._buffer[:, self._end - self._window + 1 :]
            self._end = self._window - 1
        for i, column in enumerate(self._columns):
            self._buffer[i, self._end] = row[column]
        self._end += 1
        return self._value()

    def _value(self) -> float:
        if self._end < self._window:
            return math.nan
        return self._feature.call(self._series[:, self._end - self._window : self._end])


@dataclass(frozen=True, kw_only=True)
class _Relative(Feature):
    level: Feature

    def batch(self, columns: Floats, blocks: Sequence[int]) -> Floats:
        with np.errstate(divide="ignore"):  # infinite values are refused by whoever asked
            values: Floats = columns[_CLOSE] / self.level.batch(columns, blocks) - 1.0
        return values

    def state(self) -> FeatureState:
        return _RelativeState(self.level.state())


class _RelativeState:
    def __init__(self, level: FeatureState) -> None:
        self._level = level

    def open(self, columns: Floats) -> float:
        level = self._level.open(columns)
        return self._value(columns[_CLOSE, -1].item(), level) if columns.shape[1] else math.nan

    def update(self, row: Row) -> float:
        return self._value(row[_CLOSE], self._level.update(row))

    @staticmethod
    def _value(close: float, level: float) -> float:
        return close / level - 1.0 if level else math.inf


def _require_count(owner: str, what: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise FeatureError(f"{owner}: {what} is {value!r}; it must be a whole number of bars, at least 1")


def _fields(owner: str, defaults: tuple[str, ...], inputs: Sequence[str] | None) -> tuple[str, ...]:
    """The bar fields that a feature reads, checked."""
    fields = defaults if inputs is None else tuple(inputs)
    if inputs is not None and len(fields) != len(defaults):
        raise FeatureError(f"{owner} takes {len(defaults)} inputs ({', '.join(defaults)}), not {len(fields)}")
    for field in fields:
        if field not in FIELDS:
            raise FeatureError(f"{owner} wants {field!r}, which bars do not have: they have {', '.join(FIELDS)}")
    return fields


def _flat(names: Iterable[str | Sequence[str]]) -> tuple[str, ...]:
    return tuple(name for group in names for name in ([group] if isinstance(group, str) else group))


def _arguments(parameters: dict[str, float]) -> str:
    return ", ".join(f"{name}={value}" for name, value in parameters.items())


def _word(value: float) -> str:
    """A number inside a name: 2.5 becomes 2p5."""
    return f"{value:g}".replace(".", "p").replace("-", "m").replace("+", "")


def _canonical(**definition: object) -> str:
    return json.dumps(definition, sort_keys=True)


def _source_hash(name: str, fn: Callable[..., Any]) -> str:
    """What a function is: its qualified name and its source, which unlike bytecode is the same in every Python."""
    if not inspect.isfunction(fn) or fn.__name__ == "<lambda>" or fn.__closure__:
        raise FeatureError(
            f"windowed feature {name}: give it a function that is written with def and reads no variables of an "
            "enclosing function, so that its source says all that it does"
        )
    try:
        source = inspect.getsource(fn)
    except OSError:
        raise FeatureError(f"windowed feature {name}: the source of {fn.__qualname__} cannot be read") from None
    return hashlib.sha256(f"{fn.__module__}.{fn.__qualname__}\n{inspect.cleandoc(source)}".encode()).hexdigest()
