"""Servers in Docker containers, for a machine whose engine has or can get their images."""

from __future__ import annotations

import gc
import logging
import secrets
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Self

import docker
from docker.errors import APIError, DockerException, ImageNotFound
from requests import RequestException
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient

from deploy.native.kafka import CLUSTER_ID, VERSION, kafka_answers
from deploy.native.postgres import USER, postgres_answers
from deploy.native.redis import redis_answers
from deploy.native.server import ServerError, free_ports

IMAGES = {
    "kafka": f"apache/kafka:{VERSION}",
    "postgres": "timescale/timescaledb:2.30.2-pg17",
    "plain_postgres": "postgres:17-alpine",
    "redis": "redis:8.10.2-alpine",
}
"""By server. As in `deploy/docker-compose.yml`, which knows no plain one."""

_ANSWER_TIMEOUT_S = 10
_START_TIMEOUT_S = 120.0

_log = logging.getLogger(__name__)


class ContainerServer:
    """A container that can be killed and started again on its port, with its data; removed at the context's end."""

    def __init__(
        self,
        image: str,
        port: int,
        environment: Mapping[str, str],
        address: Callable[[str, int], str],
        answers: Callable[[str, int], bool],
        command: str | None = None,
    ) -> None:
        # A port that the engine chose would be another one after a restart.
        [outside] = free_ports(1)
        self._image = image
        self._container = DockerContainer(image, env=dict(environment), command=command).with_bind_ports(port, outside)
        self._at = (self._container.get_docker_client().host(), outside)
        self._answers = answers
        self.address = address(*self._at)
        if "KAFKA_LISTENERS" in environment:  # a broker tells its clients where it is
            self._container.with_env("KAFKA_ADVERTISED_LISTENERS", f"OUTSIDE://{self.address}")

    @property
    def running(self) -> bool:
        container = self._container.get_wrapped_container()
        container.reload()
        return bool(container.status == "running")

    def start(self) -> None:
        """Start it, unless it runs, and wait until it answers. Raises `ServerError` with the end of its log."""
        self._container.get_wrapped_container().start()
        self._wait()

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        self._container.get_wrapped_container().stop(timeout=30)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self.running:
            self._container.get_wrapped_container().kill()

    def __enter__(self) -> Self:
        self._container.start()
        try:
            self._wait()
        except ServerError:
            self._container.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._container.stop()

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._answers(*self._at):
            if not self.running or time.monotonic() > deadline:
                said = b"".join(self._container.get_logs()).decode(errors="replace")[-4000:]
                raise ServerError(f"a container of {self._image} did not start; the end of its log:\n{said}")
            time.sleep(0.1)


def container(server: str) -> ContainerServer:
    """A server by its name in `IMAGES`, not started yet."""
    make = {"kafka": _kafka, "postgres": _postgres, "plain_postgres": _postgres, "redis": _redis}[server]
    return make(IMAGES[server])


def _kafka(image: str) -> ContainerServer:
    environment = {
        "CLUSTER_ID": CLUSTER_ID,
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_LISTENERS": "OUTSIDE://:9092,CONTROLLER://:9093",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "OUTSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_INTER_BROKER_LISTENER_NAME": "OUTSIDE",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_MIN_ISR": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_BROKER_SESSION_TIMEOUT_MS": "4000",
        "KAFKA_BROKER_HEARTBEAT_INTERVAL_MS": "1000",
        "KAFKA_HEAP_OPTS": "-Xmx512m",
    }
    return ContainerServer(image, 9092, environment, "{}:{}".format, kafka_answers)


def _postgres(image: str) -> ContainerServer:
    password = secrets.token_urlsafe(24)

    def address(host: str, port: int) -> str:
        return f"postgresql+psycopg://{USER}:{password}@{host}:{port}/postgres"

    return ContainerServer(
        image,
        5432,
        {"POSTGRES_USER": USER, "POSTGRES_PASSWORD": password, "TIMESCALEDB_TELEMETRY": "off"},
        address,
        lambda host, port: postgres_answers(address(host, port)),
        "postgres -c max_connections=200 -c max_worker_processes=64 -c fsync=off -c full_page_writes=off",
    )


def _redis(image: str) -> ContainerServer:
    command = "redis-server --save '' --appendonly no --protected-mode no"
    return ContainerServer(image, 6379, {}, "{}:{}".format, redis_answers, command)


def obtainable(image: str) -> bool:
    """Whether an engine answers and has the image, or got it just now. A silent registry is not waited for."""
    try:
        with closing(DockerClient(timeout=_ANSWER_TIMEOUT_S).client) as engine:
            if not _pulled(engine, image):
                return False
            # Its reaper removes what a killed interpreter leaves behind; it is an image too.
            testcontainers_config.ryuk_disabled |= not _pulled(engine, testcontainers_config.ryuk_image)
    except (DockerException, RequestException) as error:
        _log.debug("no container of %s: %s", image, error)
    else:
        return True
    # The client does not close a socket on which no engine answered; whoever collects it later would be blamed.
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()
    return False


def _pulled(engine: docker.DockerClient, image: str) -> bool:
    try:
        engine.images.get(image)
    except ImageNotFound:
        try:
            engine.images.get_registry_data(image)  # says in seconds what a pull would say in minutes
        except APIError as error:
            _log.debug("no image %s: %s", image, error)
            return False
        with closing(DockerClient().client) as patient:
            patient.images.pull(image)
    return True
