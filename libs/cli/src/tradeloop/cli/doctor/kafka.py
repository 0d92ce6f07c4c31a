"""Kafka: reached, signed in to, with the topics and the permissions of the catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from tradeloop.cli.doctor.finding import Finding, failed, ok, warning
from tradeloop.cli.naming import listed
from tradeloop.common.bus.kafka import Examined, KafkaBus, KafkaSettings
from tradeloop.common.bus.port import BusError, BusUnavailable
from tradeloop.common.messages.topics import SERVICE_TOPICS, accesses, specs

_NAMED = 4
"""How many topics or permissions are named in a line; the command of the remedy names all."""


def kafka(who: str, settings: KafkaSettings, wait_s: float, service: str | None) -> Iterator[Finding]:
    """`who` is the prefix of the variables; `service` the service whose settings these are, None for the command's."""
    where, user = settings.bootstrap_servers, settings.sasl_username
    subject = f"Kafka of {service or 'command'}"
    examined = Examined(settings, wait_s)
    try:
        brokers = examined.brokers()
    except BusUnavailable as error:
        trouble = settings.trouble()  # such as TLS on one side alone
        told = f"{error}; {trouble}" if trouble else str(error)
        yield failed(subject, told, f"start it, or mend {who}KAFKA__BOOTSTRAP_SERVERS; `make up` starts one")
        return
    except BusError as error:
        yield failed(subject, str(error), f"mend {who}KAFKA__SASL_* and {who}KAFKA__SSL_*, or the user on the cluster")
        return
    yield ok(subject, f"{where}, {brokers} broker{'s' * (brokers != 1)}, signed in as {user or 'nobody'}")
    if service is not None:
        access = next(each for each in accesses() if each.user == service)
        lacking = examined.lacking(access)
        if lacking:
            remedy = "tradeloop topics apply, then tradeloop topics permit, as a user who may do all"
            yield failed(f"permissions of {service}", f"it may not {listed(lacking, _NAMED)}", remedy)
        else:
            yield ok(f"permissions of {service}", "it may do what the catalogue says that it does")
        return
    yield from _topics(settings)
    yield from _permissions(examined)


def _topics(settings: KafkaSettings) -> Iterator[Finding]:
    wanted = specs(SERVICE_TOPICS)
    with closing(KafkaBus(settings)) as bus:
        try:
            differences = bus.differences(wanted)
        except BusError as error:
            yield failed("topics", str(error), "sign in as a user who may describe topics and their configuration")
            return
    missing = list(dict.fromkeys(each.topic for each in differences if each.found is None))
    there = [each for each in differences if each.found is not None]
    partitions = [f"{each.topic} has {each.found}" for each in there if each.setting == "partitions"]
    configured = [
        f"{each.topic}: {each.setting} is {each.found or 'not set'}, not {each.wanted}"
        for each in there
        if each.setting != "partitions"
    ]
    if missing:
        yield failed("topics", f"missing: {listed(missing, _NAMED)}", "tradeloop topics apply")
    if partitions:
        remedy = "delete the topic when its messages are not needed any more, then tradeloop topics apply"
        yield failed("topics", f"another number of partitions: {listed(partitions, _NAMED)}", remedy)
    if configured:
        yield warning("topics", f"set otherwise: {listed(configured, _NAMED)}", "tradeloop topics apply")
    if not differences:
        yield ok("topics", f"{len(wanted)} are as the catalogue says")


def _permissions(examined: Examined) -> Iterator[Finding]:
    try:
        if not examined.refuses():
            remedy = "give the brokers an authorizer and users, then tradeloop topics permit: see docs/security.md"
            yield warning("permissions", "Kafka refuses nobody anything: any service may write any topic", remedy)
            return
        granted = examined.differences(accesses())
    except BusUnavailable:
        raise
    except BusError as error:
        yield warning("permissions", str(error), "sign in as a user who may describe permissions")
        return
    for said, permissions in (("missing", granted.given), ("too many", granted.taken)):
        if permissions:
            each = [f"{one.user} {one.operation} {one.kind} {one.name}" for one in permissions]
            level = failed if permissions is granted.given else warning
            yield level("permissions", f"{said}: {listed(each, _NAMED)}", "tradeloop topics permit")
    if not granted.given and not granted.taken:
        yield ok("permissions", f"{granted.total} are as the catalogue says")
