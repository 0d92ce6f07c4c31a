"""Features by TA-Lib's functions."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import talib as functions
from talib import InsufficientHistory, get_functions  # type: ignore[attr-defined]  # exported, but its stubs forget it
from talib import stream as handles
from talib.abstract import Function  # type: ignore[attr-defined]

from tradeloop.common.arrays import Floats
from tradeloop.common.features.feature import (
    Feature,
    FeatureError,
    FeatureState,
    Row,
    Span,
    canonical,
    fields_of,
    require_count,
)
from tradeloop.common.features.windowed import WindowState, whole_windows

_FUNCTIONS: list[str] = get_functions()  # type: ignore[no-untyped-call]

_FORGETTING_PERIODS, _FORGETTING_BARS = 26, 384
"""An average with smoothing 1/period has forgotten where it began after 26 periods: (1 - 1/p)^(26 p) < 6e-12.
Functions that hide their periods (HT_*, MACDFIX, the amplified STOCHRSI) were measured to need up to 384 bars."""

_RUNNING = ("AD", "CUMSUM", "NVI", "OBV", "PVI", "PVT", "WAD")
"""TA-Lib functions that add up from where the series starts, so that only their changes mean something."""
_CUMULATIVE = frozenset(("MAXINDEX", "MININDEX", "MINMAXINDEX", "VWAP", *_RUNNING))
"""TA-Lib functions whose value depends on where the series starts, however long ago that was."""


def talib(
    function: str, *, output: str | None = None, inputs: Sequence[str] | None = None, **parameters: float
) -> Feature:
    """A TA-Lib function of the bars, e.g. `talib("RSI", timeperiod=14)`.

    `inputs` are the bar fields or further columns it reads, in the function's own order; its defaults when left out.
    Behind a bar that lacks a further column it begins anew, as at a series' first bar. A function of several outputs
    needs `output`. Raises `FeatureError`, also for cumulative functions such as OBV.
    """
    if function not in _FUNCTIONS:
        close = difflib.get_close_matches(function.upper(), _FUNCTIONS, n=1)
        hint = f"did you mean {close[0]}?" if close else "talib.get_functions() lists them"
        raise FeatureError(f"TA-Lib has no function {function!r}: {hint}")
    if function in _CUMULATIVE:
        raise FeatureError(
            f"{function} depends on where its series starts, so it has no value that a restart could repeat: take "
            + (f"its change, change_of({function!r}, n)" if function in _RUNNING else "a window, with windowed(...)")
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
    fields = fields_of(function, _flat(info.info["input_names"].values()), inputs)
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
        definition=canonical(talib=function, arguments=arguments, output=output, inputs=fields, history=history),
        history=history,
        inputs=fields,
        function=function,
        arguments=tuple(arguments.items()),
        output=outputs.index(output) if output is not None and len(outputs) > 1 else None,
        lookback=info.lookback,
    )


def change_of(function: str, n: int, *, inputs: Sequence[str] | None = None) -> Feature:
    """The change over `n` bars of a TA-Lib function that adds up without end, e.g. `change_of("OBV", 20)`.

    One of AD, CUMSUM, NVI, OBV, PVI, PVT and WAD. It is computed as if the series had begun `n` bars ago, a call a bar:
    about 2 microseconds each, in batch too. `inputs` as for `talib`. Raises `FeatureError`.
    """
    if function not in _RUNNING:
        raise FeatureError(f"change_of({function!r}, ...): the functions that add up are {', '.join(_RUNNING)}")
    require_count(f"change_of({function!r}, ...)", "n", n)
    fields = fields_of(function, _flat(Function(function).info["input_names"].values()), inputs)
    return _Change(
        name="_".join((f"change_of_{function.lower()}_{n}", *(inputs or ()))),
        definition=canonical(change_of=function, n=n, inputs=fields),
        history=n,
        inputs=fields,
        anchored=False,
        function=function,
        n=n,
    )


@dataclass(frozen=True, kw_only=True)
class _Change(Feature):
    function: str
    n: int

    def batch(self, columns: Floats, spans: Sequence[Span]) -> Floats:
        call, series = self.call, columns[self.places]
        known = whole_windows(columns[self.further], self.n + 1)
        values = np.full(columns.shape[1], np.nan)
        for stop in range(self.n + 1, columns.shape[1] + 1):
            if known[stop - 1]:
                values[stop - 1] = call(series[:, stop - self.n - 1 : stop])
        return values

    def state(self) -> FeatureState:
        return WindowState(self, self.call, self.n + 1)

    def call(self, window: Floats) -> float:
        line = getattr(functions, self.function)(*window)
        return float(line[-1] - line[0])


@dataclass(frozen=True, kw_only=True)
class _TaLib(Feature):
    function: str
    arguments: tuple[tuple[str, float], ...]
    output: int | None
    """Which of several outputs; None when there is one."""
    lookback: int

    def batch(self, columns: Floats, spans: Sequence[Span]) -> Floats:
        values = np.full(sum(stop - start for _, start, stop in spans), np.nan)
        open_and_fill, arguments = getattr(handles, self.function).open_and_fill, dict(self.arguments)
        series, further = self._series(columns), columns[self.further]
        done = 0
        for begins, start, stop in spans:
            place, done = done - start, done + stop - start
            for begin, end in _unbroken(further, begins, stop):
                if end - begin <= self.lookback or end <= start:
                    continue
                try:
                    handle, filled = open_and_fill(*[one[begin:end] for one in series], **arguments)
                except InsufficientHistory:
                    continue
                first = max(start, begin + handle.out_range.begidx)  # integer outputs are 0, not NaN, before it
                own = filled if self.output is None else filled[self.output]
                values[place + first : place + end] = own[first - begin :]
        return values

    def state(self) -> FeatureState:
        return _TaLibState(self)

    def handle(self, columns: Floats) -> Any:
        """A TA-Lib handle opened on these bars. Raises `InsufficientHistory`."""
        return getattr(handles, self.function)(*self._series(columns), **dict(self.arguments))

    def _series(self, columns: Floats) -> list[Floats]:
        return [np.ascontiguousarray(columns[place]) for place in self.places]


class _TaLibState:
    def __init__(self, feature: _TaLib) -> None:
        self._feature, self._output = feature, feature.output
        self._columns = feature.places
        self._further = feature.further if feature.extras else None
        self._warming_up: list[Row] = []
        self._handle: Any = None

    def open(self, columns: Floats) -> float:
        if self._further is not None:
            columns = columns[:, _unbroken(columns[self._further], 0, columns.shape[1])[-1][0] :]
        self._warming_up, self._handle = [], None
        if columns.shape[1] > self._feature.lookback:
            with suppress(InsufficientHistory):
                self._handle = self._feature.handle(columns)
                return self._value(self._handle.value)
        self._warming_up = list(map(tuple, columns.T.tolist()))
        return math.nan

    def update(self, row: Row) -> float:
        if self._further is not None and any(map(math.isnan, row[self._further])):
            self._warming_up, self._handle = [], None
            return math.nan
        if self._handle is None:
            self._warming_up.append(row)
            many = len(self._warming_up) > self._feature.lookback
            return self.open(np.array(self._warming_up).T) if many else math.nan
        return self._value(self._handle.update(*[row[column] for column in self._columns]))

    def _value(self, value: Any) -> float:
        return float(value if self._output is None else value[self._output])


def _unbroken(further: Floats, start: int, stop: int) -> list[tuple[int, int]]:
    """Spans of bars from `start` to `stop` that lack no further column; the last one, maybe empty, ends there."""
    if not len(further):
        return [(start, stop)]
    lacking = np.flatnonzero(np.isnan(further[:, start:stop]).any(axis=0)) + start
    return list(zip([start, *(lacking + 1).tolist()], [*lacking.tolist(), stop], strict=True))


def _flat(names: Iterable[str | Sequence[str]]) -> tuple[str, ...]:
    return tuple(name for group in names for name in ([group] if isinstance(group, str) else group))


def _arguments(parameters: dict[str, float]) -> str:
    return ", ".join(f"{name}={value}" for name, value in parameters.items())


def _word(value: float) -> str:
    """A number inside a name: 2.5 becomes 2p5."""
    return f"{value:g}".replace(".", "p").replace("-", "m").replace("+", "")
