"""Features by an author's own function: its identity, checked so that nothing else can change its values."""

from __future__ import annotations

import hashlib
import inspect
import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import CodeType
from typing import Any, ClassVar, Self

import numpy as np

from tradeloop.common.arrays import Floats
from tradeloop.common.features.feature import NAME, Feature, FeatureError, canonical, fields_of, require_count


@dataclass(frozen=True, kw_only=True)
class Authored(Feature):
    """A feature by a function of an author, of the last `window` bars."""

    kind: ClassVar[str]
    """The name of the function that makes such features."""
    fn: Callable[..., Any]
    window: int
    parameters: tuple[tuple[str, object], ...]

    @classmethod
    def of(
        cls, name: str, fn: Callable[..., Any], window: int, inputs: Sequence[str], given: Mapping[str, object]
    ) -> Self:
        """The feature by what an author gave: checked, and with its identity. Raises `FeatureError`."""
        kind = cls.kind
        owner = f"{kind} feature {name}"
        if not re.fullmatch(NAME, name):
            raise FeatureError(f"{kind} feature {name!r}: a name is lower-case letters, digits and _")
        require_count(owner, "window", window)
        fields = fields_of(owner, tuple(inputs), inputs)
        source = _source_hash(kind, name, fn, window)
        plain = {key: _plain(owner, key, value) for key, value in given.items()}
        values = {"parameters": _defaults(owner, fn, fields, plain) | plain, "constants": _constants(fn)}
        some = {key: value for key, value in values.items() if value}
        return cls(
            name=name,
            definition=canonical(**{kind: name}, source=source, window=window, inputs=fields, **some),
            history=window - 1,
            inputs=fields,
            anchored=False,
            fn=fn,
            window=window,
            parameters=tuple(plain.items()),
        )

    def ask(self, series: Floats) -> Any:
        """The answer of the function to its inputs, a row each."""
        return self.fn(**dict(zip(self.inputs, series, strict=True)), **dict(self.parameters))


def _source_hash(kind: str, name: str, fn: Callable[..., Any], window: int) -> str:
    """The identity of a function: its qualified name and source, which unlike bytecode is the same in every Python."""
    if not inspect.isfunction(fn) or fn.__name__ == "<lambda>" or fn.__closure__:
        raise FeatureError(
            f"{kind} feature {name}: give it a function that is written with def and reads no variables of an "
            "enclosing function, so that its source says all that it does; what it is to know beside the bars are "
            f"parameters of {kind}, e.g. {kind}({name!r}, fn, {window}, scale=2.0) for def fn(close, scale)"
        )
    try:
        source = inspect.getsource(fn)
    except OSError:
        raise FeatureError(f"{kind} feature {name}: the source of {fn.__qualname__} cannot be read") from None
    return hashlib.sha256(f"{fn.__module__}.{fn.__qualname__}\n{inspect.cleandoc(source)}".encode()).hexdigest()


def _defaults(owner: str, fn: Callable[..., Any], fields: Sequence[str], given: dict[str, object]) -> dict[str, object]:
    """The defaults of a function that apply, checked: a default may be a variable, which the source does not show."""
    signature = inspect.signature(fn)
    try:
        signature.bind(**dict.fromkeys(fields), **given)
    except TypeError as error:
        raise FeatureError(
            f"{owner} calls {fn.__name__}({', '.join((*fields, *given))}), and {fn.__name__} takes {signature}: {error}"
        ) from None
    return {
        key: _plain(owner, key, parameter.default)
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


def _plain(owner: str, key: str, value: object) -> object:
    """A parameter as plain data that cannot be changed."""
    try:
        return _unchanging(value)
    except ValueError:
        raise FeatureError(
            f"{owner}: its parameter {key} is {' '.join(reprlib.repr(value).split())}; parameters are "
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
