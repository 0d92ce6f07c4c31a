"""Redis from the system's packages."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import redis as client

from deploy.certificates import Certified
from deploy.native.server import Program, listens, need, write_secret

SUPERUSER = "tradeloop"
"""The user who may do all: people."""

RULES = {
    SUPERUSER: "~* &* +@all",
    "preprocess": "~* resetchannels +@read +@write +@connection -@dangerous",
    "training": "~* resetchannels +@read +@connection -@dangerous",
    "inference": "~* resetchannels +@read +@connection -@dangerous",
}
"""The rights of each user: preprocess writes features, others read them. Feast takes no more than that."""


def redis(folder: Path, port: int, passwords: Mapping[str, str] | None = None, tls: Certified | None = None) -> Program:
    """A server on 127.0.0.1 that keeps nothing: the stream writes the latest features anew. Its address is `host:port`.

    With `passwords`, by user, each client has to be one of them, and may do what its rules say. With `tls` it speaks
    nothing else. Raises `ServerError`.
    """
    need(["redis-server"], ["redis-server"])
    options = ["--bind", "127.0.0.1", *_ports(port, tls), "--dir", str(folder), "--save", "", "--appendonly", "no"]
    options += ["--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru"]  # as in Compose
    # In a file, since any user of the machine may read the arguments of a process.
    configuration = folder / "redis.conf"
    write_secret(configuration, "" if passwords is None else _users(passwords))
    password = None if passwords is None else passwords[SUPERUSER]
    return Program(
        "redis",
        ("redis-server", str(configuration), *options),
        f"127.0.0.1:{port}",
        lambda: redis_answers("127.0.0.1", port, password, None if tls is None else tls.authorities),
    )


def _users(passwords: Mapping[str, str]) -> str:
    """The users, with the hashes of their passwords, and nobody without a name."""
    lines = ["user default off"]
    for user, password in passwords.items():
        lines.append(f"user {user} on #{hashlib.sha256(password.encode()).hexdigest()} {RULES[user]}")
    return "\n".join(lines) + "\n"


def _ports(port: int, tls: Certified | None) -> list[str]:
    if tls is None:
        return ["--port", str(port)]
    files = ["--tls-cert-file", str(tls.certificate), "--tls-key-file", str(tls.key)]
    files += ["--tls-ca-cert-file", str(tls.authorities)]
    return ["--port", "0", "--tls-port", str(port), *files, "--tls-auth-clients", "no"]


def redis_answers(host: str, port: int, password: str | None = None, authorities: Path | None = None) -> bool:
    """Whether the server there answers a ping: over TLS where `authorities` is its CA file."""
    if not listens(port, host):  # the client would try for seconds
        return False
    ca_file = None if authorities is None else str(authorities)
    user = None if password is None else SUPERUSER
    with client.Redis(
        host=host,
        port=port,
        username=user,
        password=password,
        socket_timeout=5,
        ssl=ca_file is not None,
        ssl_ca_certs=ca_file,
    ) as connection:
        try:
            return bool(connection.ping())
        except client.ConnectionError:
            return False
