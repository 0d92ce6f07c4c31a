"""The checks that this environment calls for: of the command's own settings, and of each service set up in it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tradeloop.cli import configuration
from tradeloop.cli.client.deployment import SERVICES
from tradeloop.cli.configuration import COMMAND
from tradeloop.cli.doctor import kafka, machine, servers, sql
from tradeloop.cli.doctor.finding import Check, Finding, failed, ok, unused
from tradeloop.common.bus.kafka import KafkaSettings
from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError
from tradeloop.common.settings import EnvironmentSettings
from tradeloop.common.sql.engine import Schema

_EMBEDDED = "`demo`, `train` and `backtest` need none"


def plan(names: Collection[str], home: Path, least_gib: float, within_s: float, clock: Clock) -> list[Check]:
    """The checks for some services and the command, by name; without names for all that the environment sets up."""
    wait_s = within_s * 0.8  # a server that is silent is to be named by who asks it, before the time is up
    wanted = list(names) or [name for name in configuration.ALL if name == COMMAND or configuration.is_configured(name)]
    loaded: dict[str, EnvironmentSettings] = {}
    checks = [Check("Python", machine.python)]
    for name in wanted:
        complaints = configuration.faults(name)
        checks.append(Check(f"settings of {name}", _said(_understood(name, complaints))))
        if not complaints:
            loaded[name] = configuration.load(name)
    if not names and not loaded.keys() & set(SERVICES):
        told = "no service is set up in this environment; `tradeloop config show SERVICE` has its variables"
        checks.append(Check("services", _said([unused("services", told)])))
    for name, settings in loaded.items():
        checks += _of(name, settings, least_gib, wait_s, clock)
    checks.append(Check("disk", partial(machine.space, "the home", home, least_gib)))
    checks.append(Check("Docker", machine.docker))
    return checks


def _understood(name: str, complaints: Sequence[str]) -> list[Finding]:
    subject = f"settings of {name}"
    remedy = "tradeloop config show lists what it reads; docs/settings.md says what it means"
    if complaints:
        return [failed(subject, one, remedy) for one in complaints]
    given = sum(origin != "default" for _, _, origin in configuration.shown(name))
    return [ok(subject, f"understood; {given} of {configuration.prefix(name)}* are set")]


def _of(name: str, settings: EnvironmentSettings, least_gib: float, wait_s: float, clock: Clock) -> Iterator[Check]:
    service = None if name == COMMAND else name
    beginning = configuration.prefix(name)
    given = settings.model_fields_set
    if service is not None or "kafka" in given:
        found: KafkaSettings = settings.kafka  # type: ignore[attr-defined]
        remedy = f"see whether it runs and is well, or mend {beginning}KAFKA__*"
        yield Check(f"Kafka of {name}", partial(kafka.kafka, beginning, found, wait_s, service), remedy)
    else:
        yield _not_named("Kafka", f"{beginning}KAFKA__BOOTSTRAP_SERVERS")
    for database, field in (("bars", "database_url"), ("ledger", "ledger_url")):
        if field not in type(settings).model_fields:
            continue
        variable = f"{beginning}{field.upper()}"
        if field in given:
            yield _database(database, variable, getattr(settings, field).get_secret_value(), clock, service)
        else:
            yield _not_named(f"database {database}", variable)
    if "mlflow_tracking_uri" in given:
        uri = settings.mlflow_tracking_uri.get_secret_value()  # type: ignore[attr-defined]
        variable = f"{beginning}MLFLOW_TRACKING_URI"
        remedy = f"see whether it runs and is well, or mend {variable}"
        yield Check(f"MLflow of {variable}", partial(servers.mlflow, variable, uri, wait_s, clock), remedy)
    elif service is None:
        yield _not_named("MLflow", f"{beginning}MLFLOW_TRACKING_URI")
    section: Mapping[str, Any] | None = getattr(settings, "feature_online_store", None)
    if section is not None and section.get("type") == "redis":
        place = f"{beginning}FEATURE_ONLINE_STORE"
        remedy = f"see whether it runs and is well, or mend {place}"
        yield Check(f"Redis of {place}", partial(servers.redis, place, section, wait_s, clock), remedy)
    yield from _folders(service, settings, least_gib)


def _database(name: str, variable: str, url: str, clock: Clock, service: str | None) -> Check:
    def look() -> Iterator[Finding]:
        return sql.database(name, variable, url, _schemas(name), clock, service)

    return Check(f"database {name}", look, f"see whether it runs and is well, or mend {variable}")


def _schemas(database: str) -> Sequence[Schema]:
    from tradeloop.common.bar_store.sql import SCHEMA as BARS
    from tradeloop.common.event_store.sql import SCHEMA as EVENTS
    from tradeloop.execution.adapters.ledger_versions import SCHEMA as LEDGER
    from tradeloop.ingest.adapters.fetched_versions import SCHEMA as FETCHED

    return (BARS, FETCHED, EVENTS) if database == "bars" else (LEDGER,)


def _folders(service: str | None, settings: EnvironmentSettings, least_gib: float) -> Iterator[Check]:
    """The folders that a service has on this machine."""
    for field, writes in (("feature_root", service == "preprocess"), ("file_root", False)):
        path: Path | None = getattr(settings, field, None)
        if path is None:
            continue
        what = f"{field.replace('_', ' ')} of {service}"
        yield _folder(what, path, writes)
        if writes:
            yield _space(what, path, least_gib)


def _folder(what: str, path: Path, writes: bool) -> Check:
    return Check(what, partial(machine.folder, what, path, writes))


def _space(what: str, path: Path, least_gib: float) -> Check:
    return Check(f"disk of {what}", partial(machine.space, what, path, least_gib))


def _not_named(subject: str, variable: str) -> Check:
    return Check(subject, _said([unused(subject, f"{variable} is not set; {_EMBEDDED}")]))


def _said(findings: Sequence[Finding]) -> Any:
    return lambda: findings


def check_names(names: Collection[str]) -> None:
    """Raises `UserError` for a name of no service."""
    for name in names:
        if name not in configuration.ALL:
            raise UserError(f"there is no service {name}: there are {', '.join(configuration.ALL)}")
