"""Features by an author's own function of the last bars."""

from __future__ import annotations

import hashlib
import inspect
import math
import re
import reprlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import CodeType
from typing import Any

import numpy as np

from tradeloop.common.arrays import Floats
from tradeloop.common.features.feature import (
    INPUTS,
    Feature,
    FeatureError,
    FeatureState,
    Row,
    canonical,
    fields_of,
    require_count,
)


def windowed(
    name: str,
    fn: Callable[..., Any],
    window: int,
    inputs: Sequence[str] = ("close",),
    **parameters: object,
) -> Feature:
    """The author's own function of the last `window` bars.

    `fn` gets each input by name, as a read-only (window,) float64 array, oldest first, and returns a number; NaN
    says that there is none. Inputs are the fields of a bar, its further columns by their names, and `time`: the close,
    in seconds since 1970, UTC. Where a bar of the window lacks a further column, `fn` is not asked: there is no value.
    `fn` gets the `parameters` by name, too: plain data, with lists made tuples.

    It must depend on nothing else. It is identified by its own source, its parameters, the defaults that are not given,
    and the plain constants of its module that it reads: when something that it calls changes, give the feature a new
    name. Raises `FeatureError`.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise FeatureError(f"windowed feature {name!r}: a name is lower-case letters, digits and _")
    require_count(f"windowed feature {name}", "window", window)
    fields = fields_of(f"windowed feature {name}", tuple(inputs), inputs)
    source = _source_hash(name, fn, window)
    given = {key: _plain(name, key, value) for key, value in parameters.items()}
    values = {"parameters": _defaults(name, fn, fields, given) | given, "constants": _constants(fn)}
    return _Windowed(
        name=name,
        definition=canonical(
            windowed=name,
            source=source,
            window=window,
            inputs=fields,
            **{kind: some for kind, some in values.items() if some},
        ),
        history=window - 1,
        inputs=fields,
        fn=fn,
        window=window,
        parameters=tuple(given.items()),
    )


@dataclass(frozen=True, kw_only=True)
class _Windowed(Feature):
    fn: Callable[..., Any]
    window: int
    parameters: tuple[tuple[str, object], ...]

    def batch(self, columns: Floats, blocks: Sequence[int]) -> Floats:
        # One call a bar, as in the stream: over two axes NumPy and BLAS may order their sums differently, and the
        # last bits of a value would depend on how many bars were asked for at once.
        values = np.full(columns.shape[1], np.nan)
        series = columns[self.places]
        series.flags.writeable = False
        lacks = np.isnan(columns[self.further]).sum(axis=0)
        lacking = np.convolve(lacks, np.ones(self.window, np.int64))[: columns.shape[1]] if lacks.any() else lacks
        for stop in range(self.window, columns.shape[1] + 1):
            if not lacking[stop - 1]:
                values[stop - 1] = self.call(series[:, stop - self.window : stop])
        return values

    def state(self) -> FeatureState:
        return _WindowedState(self)

    def call(self, series: Floats) -> float:
        """The function of one window, (inputs, window)."""
        value = self.fn(**dict(zip(self.inputs, series, strict=True)), **dict(self.parameters))
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
        self._columns = feature.places
        self._further = [i for i, name in enumerate(feature.inputs) if name not in INPUTS]
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
        series = self._series[:, self._end - self._window : self._end]
        if self._further and np.isnan(series[self._further]).any():
            return math.nan
        return self._feature.call(series)


def _source_hash(name: str, fn: Callable[..., Any], window: int) -> str:
    """The identity of a function: its qualified name and source, which unlike bytecode is the same in every Python."""
    if not inspect.isfunction(fn) or fn.__name__ == "<lambda>" or fn.__closure__:
        raise FeatureError(
            f"windowed feature {name}: give it a function that is written with def and reads no variables of an "
            "enclosing function, so that its source says all that it does; what it is to know beside the bars are "
            f"parameters of windowed, e.g. windowed({name!r}, fn, {window}, scale=2.0) for def fn(close, scale)"
        )
    try:
        source = inspect.getsource(fn)
    except OSError:
        raise FeatureError(f"windowed feature {name}: the source of {fn.__qualname__} cannot be read") from None
    return hashlib.sha256(f"{fn.__module__}.{fn.__qualname__}\n{inspect.cleandoc(source)}".encode()).hexdigest()


def _defaults(name: str, fn: Callable[..., Any], fields: Sequence[str], given: dict[str, object]) -> dict[str, object]:
    """The defaults of a function that apply, checked: a default may be a variable, which the source does not show."""
    signature = inspect.signature(fn)
    try:
        signature.bind(**dict.fromkeys(fields), **given)
    except TypeError as error:
        raise FeatureError(
            f"windowed feature {name} calls {fn.__name__}({', '.join((*fields, *given))}), and {fn.__name__} takes "
            f"{signature}: {error}"
        ) from None
    return {
        key: _plain(name, key, parameter.default)
        for key, parameter in signature.parameters.items()
        if parameter.default is not parameter.empty and key not in given and key not in fields
    }


def _constants(fn: Callable[..., Any]) -> dict[str, object]:
    """The plain data of its module that a function reads: its source has the names, and not the values."""
    names: set[str] = set()
    codes: list[CodeType] = [fn.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
    found: dict[str, object] = {}
    for name in names:
        if name in fn.__globals__ and not name.startswith("__"):
            with suppress(ValueError):
                found[name] = _unchanging(fn.__globals__[name])
    return found


def _plain(name: str, key: str, value: object) -> object:
    """A parameter as plain data that cannot be changed."""
    try:
        return _unchanging(value)
    except ValueError:
        raise FeatureError(
            f"windowed feature {name}: its parameter {key} is {' '.join(reprlib.repr(value).split())}; parameters are "
            "plain data: finite numbers, text, booleans, None, and lists of them"
        ) from None


def _unchanging(value: object) -> object:
    """Plain data, with lists made tuples. Raises ValueError for anything else."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        return tuple(map(_unchanging, value))
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError("no plain data")
