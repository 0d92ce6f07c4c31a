"""How a process reads its settings: from the environment variables of one prefix, each of which is understood.

`<VARIABLE>_FILE` names a file that has the value, as orchestrators mount secrets. No message holds a value: a password
in the wrong variable is still a password.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from tradeloop.common.addresses import hide
from tradeloop.common.errors import UserError

log = logging.getLogger(__name__)

_JOINT, _FILE = "__", "_FILE"
_LINK = re.compile(r"SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)?")
"""Variables that Kubernetes gives every container for a Service of the same name as ours."""
_SIGNS_IN = re.compile(r"://[^\s/?#:@]*:\S+@|password=")
"""A URL with a password, or options with one."""
_LINK_PORT = re.compile(r"(tcp|udp|sctp)://")


class _Environment(EnvSettingsSource):
    """The environment, with what lies in the files that it names."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        prefix = self.settings_cls.model_config.get("env_prefix", "")
        names = {name.lower() for name in _naming_files(self.settings_cls, prefix).values()}
        in_files = {name.lower(): value for name, value in _in_files(self.settings_cls, prefix).items()}
        return {name: value for name, value in super()._load_env_vars().items() if name not in names} | in_files


class EnvironmentSettings(BaseSettings):
    """Settings that come from environment variables of one prefix; those of a nested setting join with `__`.

    To read one raises `UserError` for a file that cannot be read.
    """

    model_config = SettingsConfigDict(
        env_nested_delimiter=_JOINT,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    def model_post_init(self, context: Any) -> None:
        hide(secrets_in(self))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments come before the environment; there is no other source."""
        return init_settings, _Environment(settings_cls)


S = TypeVar("S", bound=EnvironmentSettings)


def load_settings(kind: type[S], others: Collection[str] = ()) -> S:
    """The settings of this process's environment.

    `others` are variables of the same prefix that are read elsewhere; one that ends with `_` stands for all that begin
    with it. Raises `UserError` in one line, which names the
    variable and never a value: for one of the prefix that is unknown, for one that is needed and not set, and for one
    that says something wrong.
    """
    prefix = kind.model_config["env_prefix"]
    if unknown := next(_unknown(kind, prefix, others), None):
        raise UserError(unknown)
    try:
        return kind()
    except (SettingsError, ValidationError) as error:
        raise UserError(_wrong(kind, prefix, error)[0]) from None


def faults(kind: type[EnvironmentSettings], others: Collection[str] = ()) -> list[str]:
    """Everything that `load_settings` would refuse, a line each; nothing where all is understood."""
    prefix = kind.model_config["env_prefix"]
    found = [*_unknown(kind, prefix, others)]
    try:
        kind()
    except UserError as error:  # a file that a variable names
        found.append(str(error))
    except (SettingsError, ValidationError) as error:
        found += _wrong(kind, prefix, error, nested_unknown=not found)
    return found


@contextmanager
def in_one_line() -> Iterator[None]:
    """End the process with status 2 and one line in the log for a `UserError`: a traceback helps nobody there."""
    try:
        yield
    except UserError as error:
        log.critical("ends: %s", error)
        raise SystemExit(2) from None


def variables(kind: type[BaseModel], prefix: str) -> Iterator[tuple[str, bool]]:
    """The variables that a class of settings reads, and whether any name may follow one: it is a mapping."""
    for name, field in kind.model_fields.items():
        variable = f"{prefix}{name}".upper()
        yield variable, _is_mapping(field.annotation)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from variables(field.annotation, f"{variable}{_JOINT}")


def secrets_in(value: object) -> Iterator[str]:
    """The secrets among settings: those of that type, and URLs with a password wherever they stand."""
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, str):
        if _SIGNS_IN.search(value):
            yield value
    elif isinstance(value, BaseModel):
        yield from secrets_in(dict(value))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from secrets_in(each)
    elif isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from secrets_in(each)


def _unknown(kind: type[BaseModel], prefix: str, others: Collection[str]) -> Iterator[str]:
    """A line for each variable of the prefix that nobody reads."""
    known = {**dict(variables(kind, prefix)), **{name: False for name in others if not name.endswith("_")}}
    beginnings = (
        *(f"{name}{_JOINT}" for name, is_mapping in known.items() if is_mapping),
        *(name for name in others if name.endswith("_")),
    )
    for given, value in sorted(os.environ.items()):
        name = _without_file(given.upper(), known, beginnings)  # in capitals, as pydantic reads them
        if not name.startswith(prefix) or name in known or name.startswith(beginnings):
            continue
        rest = name.removeprefix(prefix)
        if _LINK.fullmatch(rest) and (rest != "PORT" or _LINK_PORT.match(value)):
            continue
        [nearest] = difflib.get_close_matches(name, known, 1, 0.0)
        yield f"environment variable {given} is unknown: the nearest known one is {nearest}"


def _wrong(
    kind: type[BaseModel], prefix: str, error: SettingsError | ValidationError, nested_unknown: bool = True
) -> list[str]:
    """A line for each variable that is needed and not set, or says something wrong."""
    if isinstance(error, SettingsError):  # which names the field of the outermost class alone
        broken = [*_no_json(kind, prefix)] or [f"one of {prefix}*"]
        return [f"environment variable {' or '.join(broken)}: this is no valid JSON"]
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    missing = [_variable(kind, prefix, one["loc"]) for one in errors if one["type"] == "missing"]
    return [
        *([f"{' and '.join(missing)} must be set"] if missing else ()),
        *(
            f"environment variable {_variable(kind, prefix, one['loc'])}: {one['msg']}"
            for one in errors
            if one["type"] != "missing" and (nested_unknown or one["type"] != "extra_forbidden")
        ),
    ]


def _without_file(name: str, known: Collection[str], beginnings: tuple[str, ...]) -> str:
    """The variable whose value lies in the file that a variable names; the variable itself where it names none."""
    value_of = name.removesuffix(_FILE)
    return value_of if name not in known and (value_of in known or value_of.startswith(beginnings)) else name


def _naming_files(kind: type[BaseModel], prefix: str) -> dict[str, str]:
    """The variables that name a file, by that whose value lies in it; in capitals."""
    known = dict(variables(kind, prefix))
    beginnings = tuple(f"{name}{_JOINT}" for name, is_mapping in known.items() if is_mapping)
    pairs = ((_without_file(name, known, beginnings), name) for name in map(str.upper, sorted(os.environ)))
    return {value_of: name for value_of, name in pairs if value_of != name}


def _in_files(kind: type[BaseModel], prefix: str) -> dict[str, str]:
    """The values that lie in files, by variable. Raises `UserError`, which has neither a value nor a path."""
    given = {name.upper(): value for name, value in os.environ.items()}
    found = {}
    for value_of, name in _naming_files(kind, prefix).items():
        if not given[name]:  # as Compose passes on what is not set
            continue
        if given.get(value_of):
            raise UserError(f"environment variables {value_of} and {name} are both set: leave one out")
        try:
            found[value_of] = Path(given[name]).read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
        except OSError as error:
            raise UserError(f"environment variable {name}: the file cannot be read: {error.strerror}") from None
        except ValueError:
            raise UserError(f"environment variable {name}: the file is no text in UTF-8") from None
        if not found[value_of]:
            raise UserError(f"environment variable {name}: the file is empty")
    return found


def _no_json(kind: type[BaseModel], prefix: str) -> Iterator[str]:
    """The variables that hold more than one value and cannot be read."""
    known = dict(variables(kind, prefix))
    values = {given.upper(): value for given, value in os.environ.items()} | _in_files(kind, prefix)
    for name, is_mapping in known.items():
        nested = any(other.startswith(f"{name}{_JOINT}") for other in known)
        value = values.get(name)
        if value is None or not (is_mapping or nested):
            continue
        try:
            json.loads(value)
        except ValueError:
            yield name


def _is_mapping(annotation: Any) -> bool:
    return get_origin(annotation) is dict or any(get_origin(each) is dict for each in get_args(annotation))


def _variable(kind: type[BaseModel], prefix: str, place: tuple[int | str, ...]) -> str:
    """The variable at a place in the settings, and what is below it, by dots."""
    name, rest = f"{prefix}{place[0]}".upper(), place[1:]
    while rest and f"{name}{_JOINT}{rest[0]}".upper() in dict(variables(kind, prefix)):
        name, rest = f"{name}{_JOINT}{rest[0]}".upper(), rest[1:]
    field = kind.model_fields.get(str(place[0]))
    told = f" ({field.description.splitlines()[0].rstrip('.')})" if field and field.description and not rest else ""
    return ".".join([name, *map(str, rest)]) + told
