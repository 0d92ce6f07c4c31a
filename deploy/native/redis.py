"""Redis from the system's packages."""

from __future__ import annotations

from pathlib import Path

import redis as client

from deploy.native.server import Program, listens, need, write_secret


def redis(folder: Path, port: int, password: str | None = None) -> Program:
    """A server on 127.0.0.1 that keeps nothing: the stream writes the latest features anew. Its address is `host:port`.

    Raises `ServerError`.
    """
    need(["redis-server"], ["redis-server"])
    options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", "", "--appendonly", "no"]
    options += ["--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru"]  # as in Compose
    # In a file, since any user of the machine may read the arguments of a process.
    configuration = folder / "redis.conf"
    write_secret(configuration, f"requirepass {password}\n" if password else "")
    return Program(
        "redis",
        ("redis-server", str(configuration), *options),
        f"127.0.0.1:{port}",
        lambda: redis_answers("127.0.0.1", port, password),
    )


def redis_answers(host: str, port: int, password: str | None = None) -> bool:
    """Whether the server there answers a ping."""
    if not listens(port, host):  # the client would try for seconds
        return False
    with client.Redis(host=host, port=port, password=password, socket_timeout=5) as connection:
        try:
            return bool(connection.ping())
        except client.ConnectionError:
            return False
