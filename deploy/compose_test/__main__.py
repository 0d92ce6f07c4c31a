"""Build, start, trade, kill, compare, take down: `make test-compose`. With `build`, only the first: `make images`; with
`tls` the same over TLS, for which the certificates have to be there."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.compose_test.compose import PROJECT, Compose, build
from deploy.compose_test.engine import ROOT, Failed, compose_command, engine, run, say
from deploy.compose_test.images import COMPOSE_FILE, Stack, find_images
from deploy.compose_test.trade import Ports, closed_to_each_other, closed_to_strangers, look, portfolio_of, trade
from deploy.native.server import free_ports
from tradeloop.cli.client.client import Failed as RequestFailed
from tradeloop.cli.client.deployment import SERVICES
from tradeloop.cli.source import Source, open_source
from tradeloop.common.evaluation.parity import ParityBroken
from tradeloop.common.portfolio import portfolio_yaml
from tradeloop.common.strategy import load

AUTHORITIES = ROOT / "deploy" / "tls" / "ca.pem"
FRAMES = 400
UP_TIMEOUT_S = 600
KILL = "import os, signal; os.kill(int(open('/proc/1/task/1/children').read().split()[0]), signal.SIGKILL)"
"""Ends a service as a crash does. `docker kill` would not do: what an operator kills is not started again."""


def main() -> int:
    """0 when the stack did all that is asked of it. Nothing is left running either way."""
    began, only_build, tls = time.monotonic(), "build" in sys.argv[1:], "tls" in sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that all is taken down
    try:
        with engine(), find_images() as stack, tempfile.TemporaryDirectory(prefix="tradeloop-compose-") as folder:
            strategy = load("example")
            source = open_source((), strategy)
            ports, environment = _settings(Path(folder), source, AUTHORITIES if tls else None)
            Path(folder, "portfolios", "test.yaml").write_text(portfolio_yaml(portfolio_of(source, strategy)))
            command = compose_command(stack.debian_image)
            files = [*stack.files, *(_over_tls(stack) if tls else ())]
            compose = Compose(command, files, {**environment, **stack.environment})
            build(compose)
            if only_build:
                return 0
            with _up(compose):
                look(ports, environment["COMMIT"])
                closed_to_strangers(ports)
                closed_to_each_other(ports)
                bars_path = f"/bars/{source.path.name}"
                trade(ports, source, strategy, bars_path, FRAMES, lambda _: _crash(compose, "execution"))
                look(ports, environment["COMMIT"])
        say(f"passed in {time.monotonic() - began:.0f} s")
    except (Failed, ParityBroken, RequestFailed) as error:
        print(f"test-compose: {error}", file=sys.stderr)
        return 1
    return 0


def _over_tls(stack: Stack) -> list[Path]:
    """The Compose files by which servers speak TLS. Raises `Failed` where their certificates are not there."""
    if not AUTHORITIES.is_file():
        raise Failed("no certificates in deploy/tls: make test-compose TLS=1 makes them")
    os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"] = str(AUTHORITIES)
    return [COMPOSE_FILE.with_name(name) for name in ("docker-compose.tls.yml", *stack.of_tls)]


def _settings(folder: Path, source: Source, authorities: Path | None) -> tuple[Ports, dict[str, str]]:
    """Free ports, new passwords, and a folder each for portfolios and bars."""
    for name in ("portfolios", "bars"):
        (folder / name).mkdir()
    folder.chmod(0o755)  # the services read it as another user
    shutil.copy(source.path, folder / "bars")
    names = ("KAFKA", "MLFLOW", "TIMESCALEDB", "REDIS", *(service.upper() for service in SERVICES))
    numbers = dict(zip(names, free_ports(len(names)), strict=True))
    example = (ROOT / "deploy" / ".env.example").read_text()
    passwords = {name: secrets.token_hex(16) for name in re.findall(r"^(\w+_PASSWORD)=$", example, re.MULTILINE)}
    environment = {
        **{f"{name}_PORT": str(number) for name, number in numbers.items()},
        **passwords,
        "PORTFOLIO_FOLDER": str(folder / "portfolios"),
        "BARS_FOLDER": str(folder / "bars"),
        "COMMIT": run(["git", "-C", str(ROOT), "rev-parse", "HEAD"]).strip(),
    }
    http = {service: numbers[service.upper()] for service in SERVICES}
    return Ports(numbers["KAFKA"], numbers["MLFLOW"], http, passwords, authorities), environment


@contextmanager
def _up(compose: Compose) -> Iterator[None]:
    """The stack, ready; gone with its volumes in the end."""
    began = time.monotonic()
    try:
        compose("up", "--detach", "--wait", timeout_s=UP_TIMEOUT_S)
        say(f"all containers are ready, {time.monotonic() - began:.0f} s")
        yield
    except BaseException as error:
        say(f"failed: {error}")
        compose.show("ps", "--all")
        compose.show("logs", "--no-color", "--tail", "40")
        raise
    finally:
        compose("down", "--volumes", "--timeout", "20", timeout_s=300)
        left = run(["docker", "ps", "--all", "--quiet", f"--filter=label=com.docker.compose.project={PROJECT}"])
        if left:
            raise Failed(f"containers are left: {left.split()}")
        say("containers, network and volumes are gone")


def _crash(compose: Compose, service: str) -> None:
    """Kill a service as a crash would, and see the engine start it again."""
    container = compose("ps", "--quiet", service).strip()
    restarts = ["docker", "inspect", "--format", "{{.RestartCount}}", container]
    before = int(run(restarts))
    # The kill takes the command that asks for it along.
    subprocess.run(["docker", "exec", container, "python", "-c", KILL], capture_output=True, timeout=60, check=False)
    say(f"{service} was killed with SIGKILL")
    deadline = time.monotonic() + 60
    while int(run(restarts)) == before:
        if time.monotonic() > deadline:
            raise Failed(f"{service} was not started again")
        time.sleep(0.2)
    say(f"{service} was started again by the engine")


if __name__ == "__main__":
    sys.exit(main())
