"""Redis from the system's packages."""

from __future__ import annotations

from pathlib import Path

import redis as client

from deploy.certificates import Certified
from deploy.native.server import Program, listens, need, write_secret


def redis(folder: Path, port: int, password: str | None = None, tls: Certified | None = None) -> Program:
    """A server on 127.0.0.1 that keeps nothing: the stream writes the latest features anew. Its address is `host:port`.

    With `tls` it speaks nothing else. Raises `ServerError`.
    """
    need(["redis-server"], ["redis-server"])
    options = ["--bind", "127.0.0.1", *_ports(port, tls), "--dir", str(folder), "--save", "", "--appendonly", "no"]
    options += ["--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru"]  # as in Compose
    # In a file, since any user of the machine may read the arguments of a process.
    configuration = folder / "redis.conf"
    write_secret(configuration, f"requirepass {password}\n" if password else "")
    return Program(
        "redis",
        ("redis-server", str(configuration), *options),
        f"127.0.0.1:{port}",
        lambda: redis_answers("127.0.0.1", port, password, None if tls is None else tls.authorities),
    )


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
    with client.Redis(
        host=host, port=port, password=password, socket_timeout=5, ssl=ca_file is not None, ssl_ca_certs=ca_file
    ) as connection:
        try:
            return bool(connection.ping())
        except client.ConnectionError:
            return False
