"""Access control lists of a Kafka: the permissions of its users."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from tradeloop.common.bus.kafka.errors import translated
from tradeloop.common.bus.kafka.wire import Names
from tradeloop.common.bus.port import Access

_KINDS = {"topic": ResourceType.TOPIC, "group": ResourceType.GROUP, "cluster": ResourceType.BROKER}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_CLUSTER = "kafka-cluster"
_GOVERNING = ("ALTER", "ALTER_CONFIGS", "CREATE", "DESCRIBE", "DESCRIBE_CONFIGS")
"""What of a cluster is for people. What brokers do with each other is not: once it is given to one, it is denied to all
others, brokers among them where they have no user of their own."""


class Permission(NamedTuple):
    """One thing that a user may do, from any address. Reading and writing include seeing that it is there."""

    user: str
    kind: str
    """`topic` or `group`, for an administrator `cluster`; another kind of resource only where the cluster has it so."""
    name: str
    """As the cluster knows it: with its prefix. `*` is every one."""
    operation: str
    """`READ`, `WRITE` or `DESCRIBE`; others for an administrator, and where the cluster has it so."""


class Granted(NamedTuple):
    """The changes that `permit` made, and the number of permissions now."""

    given: Collection[Permission]
    taken: Collection[Permission]
    total: int


def permit(
    admin: AdminClient, accesses: Iterable[Access], names: Names, wait_s: float, administrator: str = ""
) -> Granted:
    """As `KafkaBus.permit`."""
    granted, bindings = _compared(admin, accesses, names, wait_s, administrator)
    # What is missing first: a service that works is not to stop in between.
    if granted.given:
        with translated("cannot give permissions"):
            for future in admin.create_acls(
                [_binding(each) for each in granted.given], request_timeout=wait_s
            ).values():
                future.result()
    if granted.taken:
        with translated("cannot take permissions away"):
            filters = [_exactly(bindings[each]) for each in granted.taken]
            for deleted in admin.delete_acls(filters, request_timeout=wait_s).values():
                deleted.result()
    return granted


def compared(admin: AdminClient, accesses: Iterable[Access], names: Names, wait_s: float) -> Granted:
    """The changes that `permit` would make. Raises as it does."""
    return _compared(admin, accesses, names, wait_s)[0]


def _compared(
    admin: AdminClient, accesses: Iterable[Access], names: Names, wait_s: float, administrator: str = ""
) -> tuple[Granted, Mapping[Permission, AclBinding]]:
    accesses = list(accesses)
    wanted = {permission for access in accesses for permission in permissions(access, names)}
    users = dict.fromkeys(access.user for access in accesses)
    if administrator:
        wanted |= set(everything(administrator))
        users[administrator] = None
    held = {_permission(each): each for user in users for each in _held(admin, user, wait_s)}
    return Granted(sorted(wanted - held.keys()), sorted(held.keys() - wanted), len(wanted)), held


def permissions(access: Access, names: Names) -> Iterator[Permission]:
    yield Permission(access.user, "group", names.outer(access.group), "READ")
    for operation, topics in (
        ("READ", access.reads),
        ("WRITE", access.writes),
        ("DESCRIBE", access.sees - access.reads - access.writes),
    ):
        for topic in topics:
            yield Permission(access.user, "topic", names.outer(topic), operation)


def everything(user: str) -> Iterator[Permission]:
    """What an administrator may do, where a cluster has no superuser: all with topics and groups, and to govern it."""
    for kind in ("topic", "group"):
        yield Permission(user, kind, "*", "ALL")
    for operation in _GOVERNING:
        yield Permission(user, "cluster", _CLUSTER, operation)


def _held(admin: AdminClient, user: str, wait_s: float) -> Collection[AclBinding]:
    """The bindings of a user by name; those of everybody are not among them."""
    anything = AclBindingFilter(
        ResourceType.ANY,
        None,  # type: ignore[arg-type]  # None stands for any
        ResourcePatternType.ANY,
        f"User:{user}",
        None,  # type: ignore[arg-type]
        AclOperation.ANY,
        AclPermissionType.ANY,
    )
    with translated("cannot read permissions"):
        found: Collection[AclBinding] = admin.describe_acls(anything, request_timeout=wait_s).result()
        return found


def _permission(binding: AclBinding) -> Permission:
    """A binding of the cluster; one that is not of the kind that is given here differs from all that are."""
    resource, operation = ResourceType(binding.restype), AclOperation(binding.operation).name
    kind = _NAMES.get(resource, resource.name.lower())
    pattern = ResourcePatternType(binding.resource_pattern_type)
    permission, name = AclPermissionType(binding.permission_type), binding.name
    if (pattern, permission, binding.host) != (ResourcePatternType.LITERAL, AclPermissionType.ALLOW, "*"):
        name = f"{name} ({pattern.name.lower()}, {permission.name.lower()}, from {binding.host})"
    return Permission(binding.principal.removeprefix("User:"), kind, name, operation)


def _binding(permission: Permission) -> AclBinding:
    return AclBinding(
        _KINDS[permission.kind],
        permission.name,
        ResourcePatternType.LITERAL,
        f"User:{permission.user}",
        "*",
        AclOperation[permission.operation],
        AclPermissionType.ALLOW,
    )


def _exactly(binding: AclBinding) -> AclBindingFilter:
    return AclBindingFilter(
        binding.restype,
        binding.name,
        binding.resource_pattern_type,
        binding.principal,
        binding.host,
        binding.operation,
        binding.permission_type,
    )
