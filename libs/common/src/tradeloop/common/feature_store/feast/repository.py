"""The folder of a feature store as a Feast repository: what Feast's own commands and notebooks find there."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tradeloop.common import tls

PROJECT = "tradeloop"
FILE = "feature_store.yaml"

_ABOUT = """\
# A Feast repository, written anew by whoever opens it: `feast -c THIS_FOLDER feature-views list`, `feast ui`, or
# FeatureStore(repo_path="THIS_FOLDER") in a notebook. Python needs `tradeloop-common[feast]` beside Feast: it has the
# offline store. Tradeloop itself defines the feature views: `feast apply` here would remove them all.
"""
_NAMES_OF_KINDS = {"type", "registry_type", "redis_type", "cache_mode"}
"""Settings that are no address: every other text of a configured section may hold a password."""


def describe(root: Path, registry: Mapping[str, Any], online_store: Mapping[str, Any], offline_store: str) -> None:
    """Write the folder's `feature_store.yaml`, unless it says the same already.

    Addresses outside the folder stand there as environment variables, which Feast puts in: no password is written.
    """
    sections = {
        "registry": _section("registry", root, registry),
        "online_store": _section("online", root, online_store),
    }
    content: dict[str, Any] = {"project": PROJECT, "provider": "local"} | sections
    content |= {"offline_store": {"type": offline_store}}
    wanted = sorted(set(re.findall(r"\$\{(\w+)\}", str(sections))))
    needs = f"# It needs the environment variables {', '.join(wanted)}, as in the settings of preprocess.\n"
    text = _ABOUT + (needs if wanted else "") + yaml.safe_dump(content, sort_keys=False)
    path = root / FILE
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    unfinished = path.with_name(f"{FILE}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def redis_section(section: Mapping[str, Any]) -> dict[str, Any]:
    """Feast's store for Redis with waits that end, and without its own look at what is stored before a write."""
    connection = str(section.get("connection_string", "localhost:6379"))
    for name, seconds in (("socket_connect_timeout", 2), ("socket_timeout", 5)):
        if f",{name}=" not in connection:
            connection += f",{name}={seconds}"
    return {**section, "connection_string": connection, "skip_dedup": True}


def redis_trouble(section: Mapping[str, Any]) -> str:
    """The obstacle to TLS at a store in Redis, with the remedy; nothing where there is none."""
    server, *options = str(section.get("connection_string", "")).split(",")
    host, _, port = server.rpartition(":")
    told = dict(option.partition("=")[::2] for option in options)
    if section.get("type") != "redis" or not port.isdecimal():
        return ""
    found = tls.trouble(
        host,
        int(port),
        told.get("ssl_ca_certs"),
        encrypted=told.get("ssl") == "true",
        ca_setting="ssl_ca_certs= of its connection string",
        tls_setting="say ssl=true or ssl=false in its connection string to match",
    )
    return found and f"Redis at {server}: {found}"


def _section(prefix: str, root: Path, section: Mapping[str, Any]) -> dict[str, Any]:
    """A section as the file has it: paths within the folder relative to it, other texts by a variable's name."""
    told: dict[str, Any] = {}
    for name, value in section.items():
        place = f"{prefix}_{name}"
        if isinstance(value, Mapping):
            told[name] = _section(place, root, value)
        elif not isinstance(value, str) or name in _NAMES_OF_KINDS:
            told[name] = value
        elif Path(value).is_relative_to(root):
            told[name] = str(Path(value).relative_to(root))
        else:
            told[name] = f"${{TRADELOOP_FEAST_{place.upper()}}}"
    return told
