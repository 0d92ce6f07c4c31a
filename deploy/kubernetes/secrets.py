"""Passwords of the local overlay, as the Secrets that its pods are told: `make k8s-secrets`."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from deploy.native.server import write_secret
from tradeloop.cli.client.deployment import SERVICES
from tradeloop.common.sql.roles import ROLES, role_url

FOLDER = Path(__file__).parents[1] / "k8s" / "overlays" / "local" / "secrets"
NAMES = ("KAFKA", "POSTGRES", "REDIS", "MLFLOW", *(service.upper() for service in SERVICES))
_SERVER = "postgresql+psycopg://tradeloop@timescaledb:5432/bars"


def passwords(folder: Path) -> dict[str, str]:
    """The passwords that lie in a folder, `<name>_PASSWORD` by name; those that are missing are made."""
    file = folder / "passwords.env"
    known = dict(line.split("=", 1) for line in file.read_text().splitlines()) if file.exists() else {}
    found = {name: known.get(f"{name}_PASSWORD") or secrets.token_hex(24) for name in NAMES}
    write_secret(file, _lines({f"{name}_PASSWORD": password for name, password in found.items()}))
    return found


def write_all(folder: Path) -> None:
    """Write one file of variables for each Secret of the overlay; passwords that are there stay."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, variables in secret_variables(passwords(folder)).items():
        write_secret(folder / f"{name}.env", _lines(variables))


def secret_variables(password: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The variables of each Secret by its name."""

    def url(role: str, database: str) -> str:
        return role_url(_SERVER, role, database, password["POSTGRES" if role == "tradeloop" else role.upper()])

    mlflow = f"http://tradeloop:{password['MLFLOW']}@mlflow:5000"
    online = json.dumps({"type": "redis", "connection_string": f"redis:6379,password={password['REDIS']}"})
    found: dict[str, dict[str, str]] = {
        "init": {
            "TRADELOOP_KAFKA__SASL_PASSWORD": password["KAFKA"],
            "TRADELOOP_ADMIN_URL": url("tradeloop", "bars"),
            "TRADELOOP_DATABASE_URL": url("tradeloop", "bars"),
            "TRADELOOP_LEDGER_URL": url("tradeloop", "ledger"),
            **{f"TRADELOOP_ROLES__{role.upper()}": password[role.upper()] for role in ROLES},
        },
        "kafka": {f"{name}_PASSWORD": password[name] for name in ("KAFKA", *(each.upper() for each in SERVICES))},
        "timescaledb": {"POSTGRES_PASSWORD": password["POSTGRES"]},
        "redis": {"REDIS_PASSWORD": password["REDIS"]},
        "mlflow": {
            "MLFLOW_AUTH_ADMIN_PASSWORD": password["MLFLOW"],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": password["MLFLOW"],
            "MLFLOW_BACKEND_STORE_URI": url("mlflow", "mlflow"),
        },
    }
    for service in SERVICES:
        own = {"KAFKA__SASL_PASSWORD": password[service.upper()]}
        if service == "execution":
            own["LEDGER_URL"] = url(service, "ledger")
        else:
            own["DATABASE_URL"] = url(service, "bars")
        if service in ("preprocess", "training", "inference"):
            own["FEATURE_REGISTRY"] = json.dumps({"registry_type": "sql", "path": url(service, "features")})
            own["FEATURE_ONLINE_STORE"] = online
        if service in ("training", "inference"):
            own["MLFLOW_TRACKING_URI"] = mlflow
        if service == "inference":
            own["PREDICT__TOKEN"] = ""  # no predictions over HTTP
        found[service] = {f"{service.upper()}_{name}": value for name, value in own.items()}
    return found


def _lines(variables: Mapping[str, str]) -> str:
    return "".join(f"{name}={value}\n" for name, value in variables.items())


def main() -> None:
    """Write the Secrets of the local overlay."""
    write_all(FOLDER)
    print(f"Wrote {FOLDER}: passwords.env has the passwords, the other files what each Secret says")


if __name__ == "__main__":
    main()
