"""MLflow's tracking server from this environment."""

from __future__ import annotations

import sys
import urllib.request
from pathlib import Path

from deploy.native.server import Program


def mlflow(folder: Path, port: int) -> Program:
    """A server on 127.0.0.1 over SQLite, that serves artifacts itself. Its address is an HTTP URL."""
    address = f"http://127.0.0.1:{port}"
    options = [
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", f"{folder}/artifacts"),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        *("--workers", "1"),
        *("--allowed-hosts", "127.0.0.1:*,localhost:*"),
    ]
    return Program(
        "mlflow",
        (sys.executable, "-m", "mlflow", "server", *options),
        address,
        lambda: http_answers(f"{address}/health"),
        # Its workers for background jobs are processes of 300 MB, for features that are not used here.
        environment={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )


def http_answers(url: str) -> bool:
    """Whether a GET is answered with a status of success."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:  # refused, reset, timed out, or a status of failure
        return False
