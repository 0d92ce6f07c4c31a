"""What the tests across services share."""

from __future__ import annotations

import sys

import pytest

from tests.e2e.stack import PROBE, Servers
from tests.servers import RealServer

sys.path.insert(0, str(PROBE))


@pytest.fixture(scope="session")
def servers(kafka_server: RealServer, postgres_server: RealServer, redis_server: RealServer, mlflow: str) -> Servers:
    return Servers(kafka_server, postgres_server, redis_server, mlflow)
