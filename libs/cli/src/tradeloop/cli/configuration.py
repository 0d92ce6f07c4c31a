"""The settings of the command and of each service, as this environment has them: every variable, and what is wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from tradeloop.cli.client import settings as command
from tradeloop.cli.client.deployment import SERVICES, settings_class
from tradeloop.common import settings as common
from tradeloop.common.addresses import address
from tradeloop.common.errors import UserError
from tradeloop.common.settings import EnvironmentSettings

COMMAND = "command"
"""Stands for the command itself, beside the services."""
ALL = (COMMAND, *SERVICES)

_UNITS = {
    "s": "seconds",
    "bytes": "bytes",
    "bars": "bars",
    "rows": "rows",
    "frames": "frames",
    "size": "messages",
}
"""The unit of a setting by the last word of its name."""
_HIDDEN = "***"

Origin = Literal["default", "environment", "file"]
"""`file` is one that a variable of the environment names."""


@dataclass(frozen=True)
class Setting:
    """A variable that a process reads."""

    variable: str
    path: tuple[str, ...]
    """The way to its field from the class of settings."""
    field: FieldInfo
    default: Any
    """The value without the variable; `...` where it is needed."""

    @property
    def unit(self) -> str:
        return _UNITS.get(self.path[-1].rpartition("_")[2], "") if is_number(self.field.annotation) else ""

    @property
    def meaning(self) -> str:
        return " ".join((self.field.description or "").split())

    @property
    def is_needed(self) -> bool:
        return self.default is ...

    @property
    def kind(self) -> str:
        """Its type in words for people."""
        return kind_of(self.field)


def kind(name: str) -> tuple[type[EnvironmentSettings], Mapping[str, str]]:
    """The class of settings of a service or the command, and what is read elsewhere of its prefix, with its meaning."""
    if name == COMMAND:
        return command.Settings, command.READ_ELSEWHERE
    found = settings_class(name)
    assert issubclass(found, EnvironmentSettings)
    return found, {}


def prefix(name: str) -> str:
    """The beginning of the variables of a service or the command."""
    return kind(name)[0].model_config["env_prefix"]


def is_configured(name: str) -> bool:
    """Whether the environment has a variable of it, that of the command's own options aside."""
    beginning, elsewhere = prefix(name), kind(name)[1]
    mine = [given.upper() for given in os.environ if given.upper().startswith(beginning)]
    return any(not any(one.startswith(other) for other in elsewhere) for one in mine)


def settings(name: str) -> Iterator[Setting]:
    """Every variable of a service or the command, in the order of their declaration."""
    found = kind(name)[0]
    yield from _settings(found, found.model_config["env_prefix"], (), None)


def load(name: str) -> EnvironmentSettings:
    """The settings of the environment. Raises `UserError` as the process itself does."""
    found, elsewhere = kind(name)
    return common.load_settings(found, tuple(elsewhere))


def faults(name: str) -> list[str]:
    """Everything for which a service would end at its start, or the command refuse: a line each."""
    found, elsewhere = kind(name)
    complaints = common.faults(found, tuple(elsewhere))
    if complaints:
        return complaints
    return [*_beyond(load(name))]


def shown(name: str) -> Iterator[tuple[Setting, str, Origin]]:
    """Every variable with its value now, secrets hidden, and the origin of that. Raises `UserError` as `load` does."""
    loaded = load(name)
    for setting in settings(name):
        value: Any = loaded
        for part in setting.path:
            value = getattr(value, part)
        yield setting, _as_shown(setting.field, value), _origin(setting)


def is_number(annotation: Any) -> bool:
    """Whether a value is a number."""
    return bool({int, float} & set(_alternatives(annotation)))


def kind_of(field: FieldInfo) -> str:
    """The type of a field, with its bounds, in words for people."""
    words = []
    for one in _alternatives(field.annotation):
        if one is type(None):
            continue
        if get_origin(one) is Literal:
            words.append(" or ".join(f"`{value}`" for value in get_args(one)))
        elif one is SecretStr:
            words.append("secret")
        elif one is bool:
            words.append("`true` or `false`")
        elif one is int:
            words.append("whole number")
        elif one is float:
            words.append("number")
        elif get_origin(one) in (dict, tuple, list) or (isinstance(one, type) and issubclass(one, BaseModel)):
            words.append("secrets by name" if SecretStr in get_args(one) else "JSON")
        elif getattr(one, "__name__", "") == "Path":
            words.append("path")
        else:
            words.append("text")
    bounds = [
        f"{sign} {getattr(limit, name):g}"
        for limit in field.metadata
        for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if getattr(limit, name, None) is not None
    ]
    return " or ".join(words) + (f", {' and '.join(bounds)}" if bounds else "")


def _settings(kind: type[BaseModel], beginning: str, path: tuple[str, ...], default: Any) -> Iterator[Setting]:
    for name, field in kind.model_fields.items():
        variable, place = f"{beginning}{name}".upper(), (*path, name)
        value = getattr(default, name) if default is not None else field.get_default(call_default_factory=True)
        if field.is_required() and default is None:
            value = ...
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _settings(field.annotation, f"{variable}__", place, value)
        else:
            yield Setting(variable, place, field, value)


def _beyond(loaded: EnvironmentSettings) -> Iterator[str]:
    """The faults that a process finds when it starts: in the files of its settings, and between two of them."""
    from tradeloop.common.portfolio import PortfolioSettings
    from tradeloop.inference.config import Settings as Inference
    from tradeloop.ingest.adapters.sources import load_sources
    from tradeloop.ingest.config import Settings as Ingest

    if isinstance(loaded, PortfolioSettings):
        try:
            loaded.read_portfolios()
        except UserError as error:
            yield str(error)
    if isinstance(loaded, Ingest):
        try:
            load_sources(loaded.sources)
        except UserError as error:
            yield str(error)
    if isinstance(loaded, Inference):
        yield from loaded.contradictions()


def _origin(setting: Setting) -> Origin:
    whole = {setting.variable}
    outer = setting.variable
    while "__" in outer:  # an outer one, as JSON, holds it too
        outer = outer.rpartition("__")[0]
        whole.add(outer)
    given = [name.upper() for name, value in os.environ.items() if value]
    below = f"{setting.variable}__"
    if any(f"{name}_FILE" in given for name in whole):
        return "file"
    return "environment" if any(name in whole or name.startswith(below) for name in given) else "default"


def _as_shown(field: FieldInfo, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        text = value.get_secret_value()
        return address(text) if "://" in text else _HIDDEN
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_HIDDEN}" for name in value)
    if field.repr is False:
        return _HIDDEN
    if isinstance(value, tuple):
        return f"{len(value)} of them"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
