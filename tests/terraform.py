"""What may be wrong with a folder of HCL, without a program that runs it: `complaints` names all of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import hcl2

ROOT = Path(__file__).parent.parent
TERRAFORM = ROOT / "deploy" / "terraform"
FOLDERS = {"": TERRAFORM, "state": TERRAFORM / "state"}
"""The folders that are applied, each for itself."""
SCHEMA: Mapping[str, Mapping[str, Any]] = json.loads((Path(__file__).parent / "terraform_schema.json").read_text())
"""What each type takes: names with their types (`!`: must be there, `=`: only read, `~`: not kept), and blocks."""

Tree = Mapping[str, Any]


class Thing(NamedTuple):
    """A resource, or a data source, or something of the moment."""

    kind: str
    type: str
    name: str
    body: Tree

    @property
    def address(self) -> str:
        return f"{'' if self.kind == 'resource' else f'{self.kind}.'}{self.type}.{self.name}"


_COMMON = {"count", "for_each", "depends_on", "lifecycle", "provider"}
_ANY_RESOURCE = {
    "kms:*": "a key without its account's root cannot be changed by anybody",
    "ecr:GetAuthorizationToken": "it signs in to the registry, and knows no resource",
}
"""Actions that may be allowed on all there is, or in whole, each with its reason."""
_KEYS = {"logs_key"}
"""Policies of keys: what they call everything is their key."""
_AWS_POLICIES = {
    "AmazonEKSClusterPolicy",
    "AmazonEKSWorkerNodeMinimalPolicy",
    "AmazonEC2ContainerRegistryPullOnly",
    "AmazonEKS_CNI_Policy",
    "service-role/AmazonEBSCSIDriverPolicy",
    "service-role/AmazonEFSCSIDriverPolicy",
}
"""The policies of AWS that are attached: parts of EKS want them."""
_WITH_POLICIES = {
    "aws_iam_policy",
    "aws_iam_role_policy",
    "aws_s3_bucket_policy",
    "aws_secretsmanager_secret_policy",
}
_SECRET = re.compile(r"password|secret_string|auth_token|private_key|credential")
PROTECTED: Mapping[str, Mapping[str, Any]] = {
    "aws_eks_cluster": {
        "deletion_protection": "${var.deletion_protection}",
        "encryption_config.resources": ["secrets"],
        "access_config.authentication_mode": "API",
        "access_config.bootstrap_cluster_creator_admin_permissions": False,
        "vpc_config.endpoint_private_access": True,
        "vpc_config.endpoint_public_access": "${length(var.api_cidrs) > 0}",
    },
    "aws_launch_template": {
        "metadata_options.http_tokens": "required",
        "metadata_options.http_put_response_hop_limit": 1,
        "block_device_mappings.ebs.encrypted": True,
    },
    "aws_subnet": {"map_public_ip_on_launch": (False, None)},
    "aws_msk_cluster": {
        "client_authentication.sasl.scram": True,
        "client_authentication.unauthenticated": False,
        "encryption_info.encryption_in_transit.client_broker": "TLS",
        "encryption_info.encryption_in_transit.in_cluster": True,
        "encryption_info.encryption_at_rest_kms_key_arn": '${aws_kms_key.this["data"].arn}',
        "broker_node_group_info.connectivity_info.public_access.type": "DISABLED",
        "lifecycle.prevent_destroy": True,
    },
    "aws_db_instance": {
        "storage_encrypted": True,
        "publicly_accessible": False,
        "multi_az": True,
        "deletion_protection": "${var.deletion_protection}",
        "skip_final_snapshot": False,
        "delete_automated_backups": False,
        "backup_retention_period": "${var.backup_days}",
    },
    "aws_db_parameter_group": {"parameter.name": "rds.force_ssl", "parameter.value": "1"},
    "aws_elasticache_replication_group": {
        "transit_encryption_enabled": True,
        "transit_encryption_mode": "required",
        "at_rest_encryption_enabled": True,
        "auth_token": "${random_password.cache.result}",
    },
    "aws_s3_bucket": {"force_destroy": False, "lifecycle.prevent_destroy": True},
    "aws_s3_bucket_public_access_block": dict.fromkeys(
        ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets"), True
    ),
    "aws_s3_bucket_versioning": {"versioning_configuration.status": "Enabled"},
    "aws_s3_bucket_server_side_encryption_configuration": {
        "rule.apply_server_side_encryption_by_default.sse_algorithm": "aws:kms"
    },
    "aws_efs_file_system": {"encrypted": True, "lifecycle.prevent_destroy": True},
    "aws_ecr_repository": {
        "image_tag_mutability": "IMMUTABLE",
        "image_scanning_configuration.scan_on_push": True,
        "encryption_configuration.encryption_type": "KMS",
        "force_delete": False,
    },
    "aws_kms_key": {"enable_key_rotation": True, "lifecycle.prevent_destroy": True},
    "aws_secretsmanager_secret": {"kms_key_id": '${aws_kms_key.this["passwords"].arn}'},
    "aws_cloudwatch_log_group": {"kms_key_id": "${aws_kms_key.logs.arn}"},
}
"""What must be so, by the path from the resource. Of several blocks the first counts; a tuple lists what may be."""
_BUCKET_PARTS = {
    "public_access_block", "ownership_controls", "versioning", "server_side_encryption_configuration", "policy",
}  # fmt: skip


@cache  # most files are the same in what a test changes
def _tree(text: str) -> Tree:
    tree: Tree = _plain(hcl2.loads(text))
    return tree


def _plain(value: Any) -> Any:
    """Without what the parser notes beside the values. A text is what it says, or an expression in `${}`."""
    if isinstance(value, dict):
        return {key.strip('"'): _plain(each) for key, each in value.items() if "comments__" not in key}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, str) and value.startswith('"') and value.endswith('"'):
        return value[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    return value


def trees(folder: Path) -> dict[str, Tree]:
    """The files of a folder by their names."""
    return {file.name: _tree(file.read_text()) for file in sorted(folder.glob("*.tf"))}


def named(folder: Path, kind: str) -> dict[str, Any]:
    """Variables, outputs or locals by their names."""
    found: dict[str, Any] = {}
    for tree in trees(folder).values():
        for each in tree.get(kind, ()):
            found |= {name: body for name, body in each.items() if name != "__is_block__"}
    return found


def things(folder: Path) -> Iterator[Thing]:
    """Everything that has a type."""
    for tree in trees(folder).values():
        for kind in ("resource", "data", "ephemeral"):
            for each in tree.get(kind, ()):
                for type_, of_type in each.items():
                    yield from (Thing(kind, type_, name, body) for name, body in of_type.items())


def complaints(folder: Path) -> list[str]:
    """All that is wrong with a folder."""
    return [
        *_arguments(folder),
        *_references(folder),
        *_pins(folder),
        *_descriptions(folder),
        *_policies(folder),
        *_protections(folder),
        *_secrets(folder),
    ]


def _blocks(value: Any) -> list[Tree] | None:
    """The blocks of a name; nothing where it is an argument."""
    if isinstance(value, list) and value and isinstance(value[0], Mapping) and "__is_block__" in value[0]:
        return value
    return None


def _arguments(folder: Path) -> Iterator[str]:
    for thing in things(folder):
        schema = SCHEMA[thing.kind].get(thing.type)
        if schema is None:
            yield f"{thing.address}: tests/terraform_schema.json does not know its type"
        else:
            yield from _fits(thing.address, {k: v for k, v in thing.body.items() if k not in _COMMON}, schema)


def _fits(where: str, body: Tree, schema: Mapping[str, Any]) -> Iterator[str]:
    told = {name: value for name, value in body.items() if name not in ("__is_block__", "dynamic")}
    for each in body.get("dynamic", ()):
        for name, dynamic in each.items():
            told[name] = [*told.get(name, ()), *dynamic["content"]]
    for name, value in told.items():
        of, blocks = schema.get(name), _blocks(value)
        if isinstance(of, Mapping):
            if blocks is None:
                yield f"{where}: {name} is a block"
                continue
            if of[""].endswith("..1") and len(blocks) > 1:
                yield f"{where}: there is one {name} at most"
            for each in blocks:
                yield from _fits(f"{where}.{name}", each, of)
        elif of is None:
            yield f"{where}: there is no {name}"
        elif of.endswith("=") or blocks is not None:
            yield f"{where}: {name} is {'only read' if of.endswith('=') else 'no block'}"
    for name, of in schema.items():
        must = of[""].split()[1].startswith("1") if isinstance(of, Mapping) else name and of.endswith("!")
        if must and name not in told:
            yield f"{where}: {name} is missing"


def _texts(value: Any) -> Iterator[str]:
    """The expressions in a tree, without the words around them."""
    if isinstance(value, str):
        depth, start = 0, 0
        for at, character in enumerate(value):
            if value.startswith("${", at) and not depth:
                depth, start = 1, at + 2
            elif depth and at >= start:
                depth += {"{": 1, "}": -1}.get(character, 0)
                if not depth:
                    yield value[start:at]
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _texts(key)
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


_NAME = re.compile(r'(?<![\w."$/:-])(var|local)\.(\w+)|(?<![\w."/:-])((?:data\.|ephemeral\.)?(?:aws|random)_\w+)\.(\w+)'
                   r"(?:\[[^\]]*\])?(?:\.(\w+))?")  # fmt: skip


def _references(folder: Path) -> Iterator[str]:
    there = {f"var.{name}" for name in named(folder, "variable")} | {
        f"local.{name}" for name in named(folder, "locals")
    }
    typed = {thing.address: SCHEMA[thing.kind].get(thing.type, {}) for thing in things(folder)}
    used = set()
    for file, tree in trees(folder).items():
        for text in _texts(tree):
            for match in _NAME.finditer(text):
                name = f"{match[1]}.{match[2]}" if match[1] else f"{match[3]}.{match[4]}"
                used.add(name)
                if name not in there and name not in typed:
                    yield f"{file}: {name} is not there"
                elif match[5] and match[5] not in typed.get(name, {match[5]}):
                    yield f"{file}: {name} has no {match[5]}"
    for name in sorted(there | {address for address in typed if address.startswith(("data.", "ephemeral."))}):
        if name not in used:
            yield f"{name} is used by nobody"


def _pins(folder: Path) -> Iterator[str]:
    settings = named(folder, "terraform")
    if not re.fullmatch(r">= \d+\.\d+\.\d+, < \d+\.\d+\.\d+", settings.get("required_version", "")):
        yield "required_version has no bounds"
    wanted = {name: each for one in settings.get("required_providers", ()) for name, each in one.items()}
    for name, each in wanted.items():
        if name != "__is_block__" and not re.fullmatch(r"\d+\.\d+\.\d+", each["version"]):
            yield f"the version of provider {name} is open"
    for name in sorted({thing.type.partition("_")[0] for thing in things(folder)} - set(wanted)):
        yield f"provider {name} is used and not named"


def _descriptions(folder: Path) -> Iterator[str]:
    for kind in ("variable", "output"):
        for name, each in named(folder, kind).items():
            if not each.get("description", "").endswith("."):
                yield f"{kind} {name} has no description"
            if kind == "variable" and "type" not in each:
                yield f"variable {name} has no type"
            anything = each.get("type") in ("bool", "${bool}") or name == "tags"
            if kind == "variable" and "validation" not in each and not anything:
                yield f"variable {name} takes anything"


def _policies(folder: Path) -> Iterator[str]:
    for thing in things(folder):
        written = "data.aws_iam_policy_document." in str(thing.body.get("policy"))
        if thing.type in _WITH_POLICIES and not written:
            yield f"{thing.address}: its policy is no aws_iam_policy_document"
        if thing.type in ("aws_iam_user", "aws_iam_access_key"):
            yield f"{thing.address}: a key that does not end"
        if thing.type != "aws_iam_policy_document":
            continue
        for statement in thing.body.get("statement", ()):
            if statement.get("effect", "Allow") == "Deny":
                continue
            if {"not_actions", "not_resources", "not_principals"} & statement.keys():
                yield f"{thing.address}: it allows what it does not name"
            actions = statement.get("actions", ())
            for action in actions if isinstance(actions, list) else ():
                if "*" in action and not (action in _ANY_RESOURCE and thing.name in _KEYS):
                    yield f"{thing.address}: it allows {action}"
            resources = statement.get("resources", [])
            excused = thing.name in _KEYS or set(actions) <= _ANY_RESOURCE.keys()
            if not excused and any(each.strip().endswith(("*", ":*")) and "arn" not in each for each in resources):
                yield f"{thing.address}: it allows {actions} on everything"
            for principal in statement.get("principals", ()):
                if "*" in principal["identifiers"] or principal["type"] == "*":
                    yield f"{thing.address}: it allows everybody"
    for file, tree in trees(folder).items():
        for name in re.findall(r"'policy': '([\w/-]+)'", str(tree)):
            if name not in _AWS_POLICIES:
                yield f"{file}: {name} is a policy of AWS that was not looked at"


def _protections(folder: Path) -> Iterator[str]:
    for thing in things(folder):
        for path, expected in PROTECTED.get(thing.type, {}).items() if thing.kind == "resource" else ():
            found: Any = thing.body
            for step in path.split("."):
                found = found.get(step) if isinstance(found, Mapping) else None
                if (blocks := _blocks(found)) is not None:
                    found = blocks[0]
            if found not in (expected if isinstance(expected, tuple) else (expected,)):
                yield f"{thing.address}: {path} is {found}"
    buckets = {thing.name for thing in things(folder) if thing.type == "aws_s3_bucket"}
    for part in sorted(_BUCKET_PARTS):
        for bucket in buckets - {thing.name for thing in things(folder) if thing.type == f"aws_s3_bucket_{part}"}:
            yield f"aws_s3_bucket.{bucket} has no aws_s3_bucket_{part}"
    variables = named(folder, "variable")
    for name, expected in (("deletion_protection", True), ("kafka_closed", True), ("api_cidrs", [])):
        if name in variables and variables[name].get("default") != expected:
            yield f"variable {name} is {variables[name].get('default')} where nobody says otherwise"


def _secrets(folder: Path) -> Iterator[str]:
    """Secrets that are written down, and passwords that would be kept in the state."""
    for thing in things(folder):
        for path, value in _leaves(thing.body):
            if not _SECRET.search(path.rpartition(".")[2]) or path.endswith(("_version", "_strategy")):
                continue
            if not (isinstance(value, str) and value.startswith("${")):
                yield f"{thing.address}: {path} is written down"
            elif not path.endswith("_wo") and value != "${random_password.cache.result}":
                yield f"{thing.address}: {path} would be kept in the state"
    for name, each in named(folder, "variable").items():
        if _SECRET.search(name) and not name.endswith("_version"):
            yield f"variable {name}: a secret is no input"
        if isinstance(each.get("default"), str) and re.search(r"AKIA|-----BEGIN", each["default"]):
            yield f"variable {name}: its default is a secret"
    for name, each in named(folder, "output").items():
        if "password" in str(each.get("value")):
            yield f"output {name} tells a password"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(each, f"{path}.{key}")
    elif isinstance(value, list) and _blocks(value) is not None:
        for each in value:
            yield from _leaves(each, path)
    else:
        yield path.lstrip("."), value
