"""Processes that are started, found again, stopped and killed; and `make up-native` as a whole."""

from __future__ import annotations

import gc
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from deploy.native.server import Program, Server, ServerError, free_ports, listens
from deploy.native.stack import PORTS, SERVERS, Stack
from tests.prometheus import told as seen
from tests.waiting import PATIENCE_S, until
from tradeloop.cli.client.client import Client
from tradeloop.cli.client.deployment import SERVICES
from tradeloop.cli.source import open_source
from tradeloop.common.bus.kafka import KafkaBus, KafkaSettings
from tradeloop.common.clock import SystemClock
from tradeloop.common.contracts.model_store import sample_policy
from tradeloop.common.market import to_us
from tradeloop.common.messages import SignalGenerated
from tradeloop.common.model_store.mlflow import MlflowModelStore
from tradeloop.common.model_store.permissions import RIGHTS as MODEL_RIGHTS
from tradeloop.common.model_store.port import ModelStoreUnavailable
from tradeloop.common.portfolio import read_portfolio
from tradeloop.common.runtime.metrics import CATALOGUE
from tradeloop.common.strategy import load

ROOT = Path(__file__).parents[1]
LISTEN = "import socket, time; kept = socket.create_server(('127.0.0.1', {port})); time.sleep(600)"


def listener(port: int, before: str = "") -> Program:
    """A Python process that listens, after some other code."""
    code = before + LISTEN.format(port=port)
    return Program("listener", (sys.executable, "-c", code), f"127.0.0.1:{port}", lambda: listens(port))


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture
def server(tmp_path: Path, port: int) -> Iterator[Server]:
    with Server(listener(port), tmp_path) as server:
        yield server


def pid_of(folder: Path) -> int:
    return int((folder / "listener.pid").read_text().split()[0])


def test_it_serves_until_stopped_and_again_on_its_port(server: Server, port: int) -> None:
    for end in (server.stop, server.kill, server.kill):
        assert server.running
        assert listens(port)
        end()
        assert not server.running
        assert not listens(port)
        server.start()


def test_to_start_it_twice_changes_nothing(server: Server, tmp_path: Path) -> None:
    first = pid_of(tmp_path)
    server.start()
    assert pid_of(tmp_path) == first


def test_one_that_ended_by_itself_is_started_again(server: Server, tmp_path: Path) -> None:
    os.kill(pid_of(tmp_path), signal.SIGKILL)
    until(lambda: not server.running)
    with warnings.catch_warnings(record=True, action="always") as left_behind:
        server.start()
        gc.collect()
    assert server.running
    assert not left_behind


def test_it_is_found_again(server: Server, tmp_path: Path) -> None:
    """By another command, that knows its name and its folder."""
    found = Server(Program("listener", (), "", lambda: False), tmp_path)
    assert found.running
    found.stop()
    assert not server.running


def test_a_process_that_took_its_number_is_left_alone(tmp_path: Path, port: int) -> None:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as other:
        (tmp_path / "listener.pid").write_text(f"{other.pid} 1\n")
        server = Server(listener(port), tmp_path)
        assert not server.running
        server.stop()
        server.kill()
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize("end", [Server.stop, Server.kill])
def test_children_that_left_its_group_die_with_it(
    tmp_path: Path, port: int, end: Callable[[Server], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child"
    fork = (
        "import os, time, pathlib\n"
        f"if os.fork() == 0: os.setsid(); pathlib.Path({str(child)!r}).write_text(str(os.getpid())); time.sleep(600)\n"
        f"while not os.path.exists({str(child)!r}): time.sleep(0.01)\n"
    )
    monkeypatch.setattr("deploy.native.server._STOP_TIMEOUT_S", 0.2)
    with Server(listener(port, fork), tmp_path) as server:
        until(lambda: child.read_text() != "")
        pid = int(child.read_text())
        assert lives(pid)
        end(server)
        until(lambda: not lives(pid))


def test_a_leashed_one_does_not_outlive_a_killed_interpreter(tmp_path: Path, port: int) -> None:
    command = listener(port).command
    owner_code = (
        "import time; from pathlib import Path; from deploy.native.server import Program, Server, listens\n"
        f"program = Program('listener', {command!r}, '', lambda: listens({port}))\n"
        f"server = Server(program, Path({str(tmp_path)!r})); server.start()\n"
        "print('started', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", owner_code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "started\n"
        pid = pid_of(tmp_path)
        assert lives(pid)
        owner.send_signal(signal.SIGKILL)
    until(lambda: not lives(pid))


def test_what_does_not_start_tells_its_last_words(tmp_path: Path, port: int) -> None:
    (tmp_path / "listener.log").write_text("of an earlier start\n")
    server = Server(listener(port, "raise SystemExit('no disk left')\n"), tmp_path)
    with pytest.raises(ServerError, match="listener ended") as raised:
        server.start()
    assert "no disk left" in str(raised.value)
    assert "of an earlier start" not in str(raised.value)
    assert not server.running


def test_L6_a_large_log_is_put_away_at_a_start(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.native.server.LOG_BYTES", 100)
    logs = [server.log, *(server.log.with_name(f"listener.log.{n}") for n in range(1, 7))]
    for said in ("a", "b", "c", "d", "e", "f"):
        server.log.write_text(said * 100)
        server.stop()
        server.start()
    server.stop()
    server.start()  # of a small one
    assert [log.read_text()[:1] for log in logs if log.exists()] == ["", "f", "e", "d", "c"]


def test_what_never_answers_is_killed(tmp_path: Path) -> None:
    silent = Program("listener", ("sleep", "600"), "", lambda: False, start_timeout_s=0.2)
    server = Server(silent, tmp_path)
    with pytest.raises(ServerError, match="did not answer within"):
        server.start()
    assert not server.running


def test_the_example_portfolio_fits_the_installed_bars() -> None:
    strategy = load("example")
    example = read_portfolio(ROOT / "deploy" / "portfolios" / "eur-usd.yaml")
    assert example == open_source((), strategy).portfolio(strategy)


TOKEN = "a-token-of-this-test"
LIVE = """
name: simulated
universe:
  name: simulated
  instruments: [{id: simulated:BTC/USDT}, {id: simulated:ETH/USDT}]
  timeframe: 5s
strategy: example
"""


def trade_live(home: Path, portfolio: Path) -> None:
    """Backfill, and a live feed, of the source that is configured without a network; then a prediction."""

    def told(arguments: str) -> str:
        use = f'. "{home}/env" && "{Path(sys.executable).with_name("tradeloop")}" {arguments}'
        done = subprocess.run(["sh", "-ec", use], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    told("backfill --source simulated --instrument BTC/USDT --timeframe 1m --from 2026-01-05 --to 2026-01-05T01:00")
    assert "simulated:BTC/USDT" in told("bars list")
    told(f'ingest live --portfolio "{portfolio}"')
    exported = dict(line.split("=", 1) for line in shlex.split((home / "env").read_text()) if "=" in line)
    prefix = "TRADELOOP_KAFKA__"
    kafka = {name.removeprefix(prefix).lower(): value for name, value in exported.items() if name.startswith(prefix)}
    client = Client(KafkaBus(KafkaSettings.model_validate(kafka)), SystemClock(), say=lambda _: None)

    def decided() -> list[SignalGenerated]:
        return [one for one in client.read(SignalGenerated) if one.portfolio == "simulated"]

    until(lambda: len(decided()) >= 3)
    times = sorted(to_us(one.time) for one in decided())
    assert {later - earlier for earlier, later in pairwise(times)} == {5_000_000}
    assert told("status").count("simulated") > 1

    address = (home / "run" / "inference.address").read_text()
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    body = json.dumps({"portfolio": "simulated"}).encode()

    def predicted() -> dict[str, Any] | None:
        try:
            asked = urllib.request.Request(f"{address}/v1/predict", body, headers)
            with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            if error.code != 503:  # the newest bar is not online yet, or not decided on
                raise
            return None

    until(predicted)
    found = predicted() or {}
    assert not found or found["decision"]["reason"] in ("no_model", "warming_up")
    measured = {name: seen((home / "run" / f"{name}.address").read_text()) for name in SERVICES}
    assert {name for name in CATALOGUE if name.startswith("tradeloop_feed_")} <= measured["ingest"]
    assert "tradeloop_predictions_total" in measured["inference"]
    assert {"tradeloop_bar_to_decision_seconds", "tradeloop_portfolio_equity_quote"} <= measured["execution"]
    told(f'ingest live --portfolio "{portfolio}" --stop')


def other_services_models_are_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training registers, and inference, with the address that its process was given, may not change what is used."""
    settings, _ = json.loads((home / "run" / "told").read_text())
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(home / "tls" / "ca.pem"))
    training, inference = (
        MlflowModelStore(settings[name][f"{name.upper()}_MLFLOW_TRACKING_URI"]) for name in ("training", "inference")
    )
    version = training.register("of_this_test", sample_policy(b"a graph"), metrics={}, parameters={}).version
    training.set_alias("of_this_test", "champion", version)
    assert inference.load("of_this_test", "champion").policy.onnx == b"a graph"
    with pytest.raises(ModelStoreUnavailable, match="Permission denied"):
        inference.set_alias("of_this_test", "champion", version)
    assert [name for name in SERVICES if f"{name.upper()}_MLFLOW_TRACKING_URI" in settings[name]] == list(MODEL_RIGHTS)


def tells(home: Path, secrets: list[str]) -> list[str]:
    """The pages of services, and the logs of all, that have one of the secrets in them."""
    found = [str(log) for log in (home / "log").iterdir() if any(each in log.read_text() for each in secrets)]
    for name in SERVICES:
        address = (home / "run" / f"{name}.address").read_text()
        for page in ("live", "ready", "metrics", "build"):
            with urllib.request.urlopen(f"{address}/{page}", timeout=PATIENCE_S) as answer:
                text = answer.read().decode()
                found += [f"{name}/{page}" for each in secrets if each in text]
    return found


def test_up_starts_all_once_and_down_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One start of everything over TLS, a live feed, then what a second start does, then one that fails."""
    monkeypatch.setenv("INFERENCE_PREDICT__TOKEN", TOKEN)
    said: list[str] = []
    home = tmp_path / "native"
    stack = Stack(home, said.append)
    portfolios = tmp_path / "portfolios"
    with pytest.raises(ServerError, match="no portfolios in"):
        stack.up(portfolios)

    portfolios.mkdir()
    example = (ROOT / "deploy" / "portfolios" / "eur-usd.yaml").read_text()
    (portfolios / "eur-usd.yaml").write_text(example)
    (portfolios / "simulated.yaml").write_text(LIVE)
    with pytest.raises(ServerError, match="no sources in"):
        stack.up(portfolios, tmp_path / "sources.yaml")
    try:
        stack.up(portfolios, tls=True)
        assert [line for line in said if line.startswith("starting")] == [f"starting {name}" for name in PORTS]
        pids = {name: int((home / "run" / f"{name}.pid").read_text().split()[0]) for name in PORTS}
        for name in SERVICES:
            address = (home / "run" / f"{name}.address").read_text()
            with urllib.request.urlopen(f"{address}/ready", timeout=PATIENCE_S) as answer:
                assert answer.status == 200
        secrets = [home / "env", home / "postgres" / "password", home / "run" / "told", home / "run" / "passwords"]
        secrets += [*(home / "tls").rglob("*.key"), *(home / "tls").rglob("both.pem")]
        assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
        password = (home / "postgres" / "password").read_text()
        assert not [line for line in said if password in line]
        use = f'. "{home}/env" && "{Path(sys.executable).with_name("tradeloop")}" topics diff'
        used = subprocess.run(["sh", "-ec", use], capture_output=True, text=True, check=False)
        assert used.returncode == 0, used.stdout + used.stderr
        other_services_models_are_left_alone(home, monkeypatch)
        trade_live(home, portfolios / "simulated.yaml")
        assert not tells(home, [*json.loads((home / "run" / "passwords").read_text()).values(), password, TOKEN])

        said.clear()
        stack.up(portfolios, tls=True)
        assert {f"{name} runs already" for name in PORTS} <= set(said)
        assert not [line for line in said if line.startswith(("starting", "stopping"))]

        said.clear()
        (portfolios / "eur-usd.yaml").write_text(example.replace("strategy: example", "strategy: lost"))
        with pytest.raises(ServerError, match=r"(?s)preprocess ended.*lost"):
            stack.up(portfolios, tls=True)
        runs = {name for name in PORTS if Server(Program(name, (), "", lambda: False), home / "run").running}
        assert runs == set(SERVERS)
    finally:
        stack.down()
    assert said[-len(SERVERS) :] == [f"stopping {name}" for name in reversed(SERVERS)]
    assert not [name for name in PORTS if lives(pids[name])]
    stack.down(clean=True)
    assert said[-2:] == ["nothing runs", f"removed {home}"]
    assert not home.exists()
