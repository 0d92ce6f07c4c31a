"""`tradeloop models` and `tradeloop mlflow`: what is registered, and MLflow's own pages of it."""

from __future__ import annotations

import os
import socket
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tradeloop.common.errors import UserError

if TYPE_CHECKING:
    from tradeloop.common.model_store.port import ModelStore

app = typer.Typer(help="List the registered models, and show what is known of one.", no_args_is_help=True)

DEFAULT_HOME = Path(".tradeloop")
Home = Annotated[
    Path,
    typer.Option(
        "--home", envvar="TRADELOOP_HOME", help="Folder of the embedded stack: bars, features, models, ledger."
    ),
]


class Which(StrEnum):
    """A stack."""

    embedded = "embedded"
    running = "running"


Stack = Annotated[
    Which | None,
    typer.Option(
        "--stack",
        help="Models of the home, or of the running stack. Without it: the running one where "
        "TRADELOOP_MLFLOW_TRACKING_URI says where its MLflow is.",
    ),
]


@app.command("permit")
def permit_() -> None:
    """Make MLflow's users `training`, who registers, and `inference`, who reads, with the rights for that.

    TRADELOOP_MLFLOW_TRACKING_URI is an administrator's; TRADELOOP_ROLES__TRAINING and TRADELOOP_ROLES__INFERENCE are
    the passwords. Does what is missing, and sets the passwords anew; all else that these users may is taken away.
    """
    from tradeloop.cli.client.settings import load_settings
    from tradeloop.common.model_store.permissions import permit

    settings = load_settings()
    passwords = {role.lower(): password.get_secret_value() for role, password in settings.roles.items()}
    for user, changes in permit(settings.mlflow_tracking_uri.get_secret_value(), passwords):
        typer.echo(f"{user}: {', '.join(changes) or 'as it was'}")


@app.command("list")
def list_(home: Home = DEFAULT_HOME, stack: Stack = None) -> None:
    """List every registered version: what it was trained for and on, and how it did."""
    from rich.console import Console
    from rich.table import Table

    from tradeloop.cli.outcome import print_whole

    store, place = _store(home, stack)
    versions = store.versions()
    if not versions:
        raise UserError(f"{place} has no models: run `tradeloop train` first")
    table = Table("model", "alias", "trained to", "seed", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    shown = [name for name in _SHOWN if any(name in one.metrics for one in versions)]
    for name in shown:
        sample, _, figure = name.replace("total_", "").rpartition("_")
        table.add_column(f"{sample.replace('_', ' ')}\n{figure}", justify="right")
    for one in versions:
        known = one.parameters
        table.add_row(
            f"{one.name}:{one.version}",
            ", ".join(one.aliases),
            # The bars that chose a policy are not out of sample either.
            (known.get("selected_to") or known.get("trained_to", "")).partition("T")[0],
            known.get("seed", ""),
            *(_figure(name, one.metrics[name]) if name in one.metrics else "" for name in shown),
        )
    console = Console()
    count = f"{len(versions)} version{'s' * (len(versions) != 1)} in {place}"
    console.print(count, soft_wrap=True, markup=False, highlight=False)
    print_whole(console, table)


def _figure(name: str, value: float) -> str:
    return f"{value:+.1%}" if name.endswith("return") else f"{value:.2f}"


_SHOWN = ("in_sample_total_return", "in_sample_sharpe", "valid_total_return", "valid_sharpe")


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="NAME, whose newest version is shown, or NAME:VERSION, or NAME:ALIAS.")],
    home: Home = DEFAULT_HOME,
    stack: Stack = None,
) -> None:
    """Show all that is known of one version: its manifest, its parameters and its metrics."""
    from tradeloop.cli.models import find_in

    store, place = _store(home, stack)
    registered = find_in(store, place, model, None)
    (listed,) = [one for one in store.versions() if (one.name, one.version) == (registered.name, registered.version)]
    typer.echo(f"{registered.name}:{registered.version}  {', '.join(listed.aliases)}".rstrip())
    manifest = {name: value for name, value in registered.policy.manifest if name != "feature_names"}
    manifest["features"] = ", ".join(registered.policy.manifest.feature_names)
    for name in ("instrument_ids", "also"):
        manifest[name] = ", ".join(getattr(registered.policy.manifest, name))
    parameters = {name: value for name, value in listed.parameters.items() if name not in manifest}
    for title, facts in (("manifest", manifest), ("parameters", parameters), ("metrics", listed.metrics)):
        typer.echo(f"\n{title}")
        width = max(24, *map(len, facts)) if facts else 0
        for name, value in sorted(facts.items()) if title != "manifest" else facts.items():
            typer.echo(
                f"  {name:<{width}} {value:.6g}" if isinstance(value, float) else f"  {name:<{width}} {value}".rstrip()
            )


def _store(home: Path, stack: Which | None) -> tuple[ModelStore, str]:
    """The store that is asked, and where it is."""
    from tradeloop.cli.client.settings import load_settings
    from tradeloop.cli.models import running_store, store_of

    if stack is None and "mlflow_tracking_uri" in load_settings().model_fields_set:
        stack = Which.running
    return running_store() if stack is Which.running else (store_of(home), str(home))


def mlflow(
    home: Home = DEFAULT_HOME,
    host: Annotated[str, typer.Option("--host", help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The port to listen at.")] = 5000,
) -> None:
    """Open MLflow's own pages on the models of a home: runs, metrics, parameters and files."""
    from tradeloop.cli.models import database_of

    database = database_of(home).resolve()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"--host {host} --port {port}: {error.strerror}: choose another --port") from error
    says = f"MLflow will show {database} at http://{host}:{port} once it says that it runs; Ctrl-C ends it"
    print(says, file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", f"sqlite:///{database}"]
    os.execv(sys.executable, [*command, "--host", host, "--port", str(port), "--workers", "1"])
