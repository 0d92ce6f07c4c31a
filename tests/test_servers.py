"""The servers of the tests: each serves, and comes back on its address with its data after a stop or a crash."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
import redis as redis_client
import yaml
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from deploy.native.postgres import driver_url
from tests.containers import IMAGES
from tests.servers import RealServer, fresh_database, tier_of
from tests.waiting import PATIENCE_S

End = Callable[[RealServer], None]
ENDS: list[End] = [lambda server: server.stop(), lambda server: server.kill()]
each_end = pytest.mark.parametrize("end", ENDS, ids=["stop", "kill"])


@each_end
def test_kafka_keeps_its_messages(kafka_server: RealServer, end: End) -> None:
    at: dict[str, str | int | float | bool] = {"bootstrap.servers": kafka_server.address}
    topic = f"test.restart.{ENDS.index(end)}"
    admin = AdminClient(at)
    admin.create_topics([NewTopic(topic, 1)], operation_timeout=PATIENCE_S)[topic].result(PATIENCE_S)
    producer = Producer(at)
    producer.produce(topic, b"kept")
    assert producer.flush(PATIENCE_S) == 0
    end(kafka_server)
    assert not kafka_server.running
    kafka_server.start()
    consumer = Consumer({**at, "group.id": topic, "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    try:
        message = consumer.poll(PATIENCE_S)
    finally:
        consumer.close()
    assert message is not None
    assert message.value() == b"kept"


@each_end
def test_postgres_keeps_its_rows(postgres_server: RealServer, end: End) -> None:
    with fresh_database(postgres_server.address) as database:
        with psycopg.connect(driver_url(database)) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS value")
        end(postgres_server)
        assert not postgres_server.running
        postgres_server.start()
        with psycopg.connect(driver_url(database)) as connection:
            assert connection.execute("SELECT value FROM kept").fetchone() == (1,)


def test_databases_are_apart_and_have_their_tier(
    postgres: str, database: str, plain_postgres: str, plain_database: str
) -> None:
    assert len({postgres, database, plain_postgres, plain_database}) == 4
    assert tier_of(postgres) == tier_of(database)
    assert tier_of(plain_postgres) == tier_of(plain_database) == "plain"
    with psycopg.connect(driver_url(plain_database)) as connection:
        available = "SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb'"
        assert connection.execute(available).fetchone() is None


@each_end
def test_redis_forgets(redis_server: RealServer, end: End) -> None:
    host, port = redis_server.address.split(":")
    with redis_client.Redis(host=host, port=int(port)) as client:
        client.set("key", "value")
        assert client.get("key") == b"value"
        end(redis_server)
        assert not redis_server.running
        redis_server.start()
        assert client.get("key") is None


def test_mlflow_answers(mlflow: str) -> None:
    with urllib.request.urlopen(f"{mlflow}/version", timeout=PATIENCE_S) as answer:
        assert answer.read().decode().startswith("3.")


def test_containers_are_those_of_compose() -> None:
    compose = yaml.safe_load((Path(__file__).parents[1] / "deploy" / "docker-compose.yml").read_text())
    used = {service["image"] for service in compose["services"].values()}
    assert {image for server, image in IMAGES.items() if server != "plain_postgres"} <= used
