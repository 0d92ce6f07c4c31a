"""Providers that have schemas and make nothing: with them OpenTofu and Terraform validate and plan without a network.

They speak as much of the plug-in protocol, version 6, as that needs. Schemas are those of tests/terraform_schema.json;
every configuration that fits them is fine, and a plan on nothing is what is configured. What a cloud would choose is
unknown, as it is before anything is made, or an invention, so that everything that follows from it can be looked at.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import msgpack

PROPERTIES = ("KAFKA", "POSTGRES", "REDIS", "MLFLOW", "INGEST", "PREPROCESS", "TRAINING", "INFERENCE", "EXECUTION")
NESTING = {"single": 1, "list": 2, "set": 3, "map": 4}


def field(number: int, value: bytes | str | int) -> bytes:
    """One field of a protobuf message: a number, or bytes with their length before them."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(raw)) + raw


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def json_type(written: str) -> Any:
    """A type as JSON has it, of one as HCL has it: `list(object({a=string}))`."""
    if match := re.fullmatch(r"(list|set|map)\((.*)\)", written):
        return [match[1], json_type(match[2])]
    if match := re.fullmatch(r"object\(\{(.*)\}\)", written):
        return ["object", {name: json_type(of) for name, of in _members(match[1])}]
    return written


def _members(written: str) -> Iterator[tuple[str, str]]:
    """The members of an object: split at commas outside all brackets."""
    depth, start = 0, 0
    for index, character in enumerate(written + ","):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and not depth:
            name, _, of = written[start:index].partition("=")
            if name:
                yield name, of
            start = index + 1


def block_of(schema: Mapping[str, Any]) -> bytes:
    """The message `Schema.Block`."""
    out = b""
    for name, of in schema.items():
        if isinstance(of, str) and name:
            out += field(2, _attribute(name, of))
        elif name:
            nesting, _, bounds = of[""].partition(" ")
            least, _, most = bounds.partition("..")
            block = field(1, name) + field(2, block_of(of)) + field(3, NESTING[nesting])
            out += field(3, block + field(4, int(least)) + field(5, int(most or 0)))
    return out


def _attribute(name: str, of: str) -> bytes:
    written, kind = (of[:-1], of[-1]) if of[-1] in "!=~" else (of, "")
    out = field(1, name) + field(2, json.dumps(json_type(written)))
    if kind == "!":
        return out + field(4, 1)  # required
    if kind == "=":
        return out + field(6, 1)  # computed
    if kind == "~":
        return out + field(5, 1) + field(11, 1)  # optional, and written without being kept
    return out + field(5, 1) + field(6, 1)  # optional, and the server's choice otherwise


def schemas_of(provider: str, known: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The answer to `GetProviderSchema`: the types of one provider, whose names begin with its own."""
    out = field(1, field(2, block_of(_CONFIGURATIONS.get(provider, {}))))
    for kind, number in (("resource", 2), ("data", 3), ("ephemeral", 8)):
        for name, schema in known[kind].items():
            if name.startswith(f"{provider}_"):
                out += field(number, field(1, name) + field(2, field(2, block_of(schema))))
    return out


_CONFIGURATIONS: Mapping[str, Mapping[str, Any]] = {
    "aws": {
        "region": "string",
        "allowed_account_ids": "set(string)",
        "default_tags": {"": "list 0..1", "tags": "map(string)"},
    }
}


_UNKNOWN = msgpack.ExtType(0, b"\x00")


class _Provider(grpc.GenericRpcHandler):  # type: ignore[misc]  # gRPC ships no types
    """The answers of one provider. Each thing that it plans has a number, for values that nobody else has."""

    def __init__(self, provider: str, known: Mapping[str, Mapping[str, Any]], *, invents: bool) -> None:
        self._schemas = schemas_of(provider, known)
        self._known, self._invents, self._numbers = known, invents, itertools.count(1)

    def service(self, handler_call_details: Any) -> Any:
        answer = {
            "GetProviderSchema": lambda request: self._schemas,
            "PlanResourceChange": self._plan,
            "ReadDataSource": self._read,
            "OpenEphemeralResource": self._open,
        }.get(handler_call_details.method.rpartition("/")[2])
        if answer is None and re.search(r"/(Validate|Configure|Stop|Close)\w+$", handler_call_details.method):
            answer = lambda request: b""  # noqa: E731  # nothing is wrong
        return answer and grpc.unary_unary_rpc_method_handler(lambda request, context: answer(request))

    def _plan(self, request: bytes) -> bytes:
        told = fields(request)
        name, proposed = told[1].decode(), _dynamic(told[3])
        if proposed is not None:
            self._fill(name, self._known["resource"][name], proposed, self._invents, next(self._numbers))
        return field(1, field(1, msgpack.packb(proposed))) + field(5, 1)

    def _read(self, request: bytes) -> bytes:
        told = fields(request)
        name, state = told[1].decode(), _dynamic(told[2])
        if name == "aws_iam_policy_document":
            state["json"] = json.dumps(
                {"Version": "2012-10-17", "Statement": [_statement(s) for s in state["statement"]]}
            )
        if name == "aws_partition":
            state["partition"] = "aws"
        self._fill(name, self._known["data"][name], state, True, next(self._numbers))
        return field(1, field(1, msgpack.packb(state)))

    def _open(self, request: bytes) -> bytes:
        told = fields(request)
        name, result = told[1].decode(), _dynamic(told[2])
        if name == "aws_secretsmanager_secret_version":
            result["secret_string"] = json.dumps(dict.fromkeys((f"{name}_PASSWORD" for name in PROPERTIES), "invented"))
        self._fill(name, self._known["ephemeral"][name], result, True, next(self._numbers))
        return field(3, field(1, msgpack.packb(result)))

    def _fill(self, name: str, schema: Mapping[str, Any], value: dict[str, Any], invents: bool, number: int) -> None:
        """Say what a cloud would choose, and forget what is written without being kept."""
        for key, of in schema.items():
            if isinstance(of, Mapping):
                nested = value.get(key)
                for each in nested if isinstance(nested, list) else [nested]:
                    if isinstance(each, dict):  # and neither absent nor unknown
                        self._fill(name, of, each, invents, number)
            elif key and of.endswith("~"):
                value[key] = None
            elif key and value.get(key) is None and (of.endswith("=") or key == "id"):
                value[key] = _invented(f"{name}-{number}-{key}", json_type(of.rstrip("="))) if invents else _UNKNOWN


def _invented(text: str, of: Any) -> Any:
    """A value of a type, with a text that nothing else has."""
    if isinstance(of, str):
        return {"bool": True, "number": 1}.get(of, f"arn:aws:{text}" if text.endswith("arn") else text)
    if of[0] == "object":
        return {name: _invented(f"{text}.{name}", inner) for name, inner in of[1].items()}
    return {"entry": _invented(text, of[1])} if of[0] == "map" else [_invented(text, of[1])]


def _statement(said: Mapping[str, Any]) -> dict[str, Any]:
    """A statement of a policy as JSON has it."""
    return {
        "Effect": said["effect"] or "Allow",
        "Action": said["actions"],
        "Resource": said["resources"],
        "Principal": {each["type"]: each["identifiers"] for each in said["principals"]},
        "Condition": {f"{each['test']} {each['variable']}": each["values"] for each in said["condition"]},
    }


def _dynamic(message: bytes) -> Any:
    return msgpack.unpackb(fields(message)[1])


def fields(message: bytes) -> dict[int, bytes]:
    """The last field of each number that has a length."""
    found, at = {}, 0
    while at < len(message):
        tag, at = _number(message, at)
        length, at = _number(message, at)
        if tag & 7 == 2:
            found[tag >> 3] = message[at : at + length]
            at += length
    return found


def _number(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (message[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if message[at - 1] < 128:
            return value, at


@contextmanager
def providers(known: Mapping[str, Mapping[str, Any]], *, invents: bool = False) -> Iterator[str]:
    """A server for each provider, for the time of the context; gives the value of TF_REATTACH_PROVIDERS."""
    attached, servers = {}, []
    try:
        for name in ("aws", "random"):
            server = grpc.server(ThreadPoolExecutor(4), handlers=[_Provider(name, known, invents=invents)])
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            servers.append(server)
            attached[f"hashicorp/{name}"] = {
                "Protocol": "grpc",
                "ProtocolVersion": 6,
                "Pid": os.getpid(),
                "Test": True,
                "Addr": {"Network": "tcp", "String": f"127.0.0.1:{port}"},
            }
        yield json.dumps(attached)
    finally:
        for server in servers:
            server.stop(None).wait()
