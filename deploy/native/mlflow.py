"""MLflow's tracking server from this environment."""

from __future__ import annotations

import ssl
import sys
import urllib.request
from pathlib import Path

from deploy.certificates import Certified
from deploy.native.server import Program, write_secret

USER = "tradeloop"

_AUTH = """\
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{folder}/users.db
admin_username = {user}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""


def mlflow(folder: Path, port: int, password: str | None = None, tls: Certified | None = None) -> Program:
    """A server on 127.0.0.1 over SQLite, that serves artifacts itself. Its address is an HTTP URL, without a password.

    With `password` it answers to `USER` alone, but for its health.
    """
    address = f"{'http' if tls is None else 'https'}://127.0.0.1:{port}"
    options = [
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", f"{folder}/artifacts"),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        *("--workers", "1"),
        *("--allowed-hosts", "127.0.0.1:*,localhost:*"),
    ]
    # Its workers for background jobs are processes of 300 MB, for features that are not used here.
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    if password is not None:
        options += ["--app-name", "basic-auth"]
        write_secret(folder / "auth.ini", _AUTH.format(folder=folder, user=USER))
        environment |= {
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": password,
        }
    if tls is not None:
        options += ["--uvicorn-opts", f"--ssl-certfile {tls.certificate} --ssl-keyfile {tls.key}"]
    authorities = None if tls is None else tls.authorities
    return Program(
        "mlflow",
        (sys.executable, "-m", "mlflow", "server", *options),
        address,
        lambda: http_answers(f"{address}/health", authorities),
        environment=environment,
    )


def http_answers(url: str, authorities: Path | None = None) -> bool:
    """Whether a GET is answered with a status of success; `authorities` is the CA file of an `https` address."""
    context = None if authorities is None else ssl.create_default_context(cafile=authorities)
    try:
        with urllib.request.urlopen(url, timeout=5, context=context):
            return True
    except OSError:  # refused, reset, timed out, no TLS, or a status of failure
        return False
