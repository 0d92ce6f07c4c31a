"""Processes that are started, found again, stopped and killed; and `make up-native` as its pages have it."""

from __future__ import annotations

import gc
import gzip
import json
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from deploy.native.server import Program, Server, ServerError, claim, free_ports, listens
from deploy.native.stack import PORTS, SERVERS, Stack
from tests.pages import Reader, block, like_a_checkout, steps
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


def test_a_port_is_of_one_server(tmp_path: Path, port: int) -> None:
    """From before it listens there: of two stacks that start at once, the second one takes another port."""
    hold = claim(port)
    assert hold is not None
    with closing(hold):
        assert claim(port) is None
        with socket.create_server(("127.0.0.1", port)):
            pass  # whoever holds it may listen
    with socket.create_server(("127.0.0.1", port)):
        assert claim(port) is None
    said: list[str] = []
    first, second = (Stack(tmp_path / name, said.append) for name in ("first", "second"))
    with first._holds, second._holds:
        taken, other = first._port("mlflow"), second._port("mlflow")
        assert taken != other
        assert said[-1] == f"port {PORTS['mlflow']} is taken: mlflow gets {other}"
    again = claim(other)
    assert again is not None
    again.close()


def test_the_example_portfolio_fits_the_installed_bars() -> None:
    strategy = load("example")
    example = read_portfolio(ROOT / "deploy" / "portfolios" / "eur-usd.yaml")
    assert example == open_source((), strategy).portfolio(strategy)


TOKEN = "a-token-of-this-test"
OPERATOR, OPERATIONS, TRADER = "docs/start/operator.md", "docs/operations.md", "docs/start/trader.md"
SHORTER = {
    r"^make up +# or make up-native": "make up-native #",
    r"^git checkout": ": git checkout",  # there is no other release
    r"^tradeloop train --portfolio": "tradeloop train --steps 1 --to 2017-03-01 --portfolio",
    r"^tradeloop train --bars": "tradeloop train --steps 1 --bars",
    r"--to 2017-07-01": "--to 2017-01-20",
    r"--from 2017-07-01": "--from 2017-01-20 --to 2017-02-10",
    r"7 days ago": "1 hour ago",
    r"@1m ": "@5s ",
    r"localhost:8085": "$(cat .native/run/execution.address)",  # where it is taken
}
"""What a reader of this test does otherwise than the pages say, so that it is done sooner."""


def trade_live(home: Path) -> None:
    """What comes of the live feed of the page: decisions, predictions, metrics."""
    exported = dict(line.split("=", 1) for line in shlex.split((home / "env").read_text()) if "=" in line)
    prefix = "TRADELOOP_KAFKA__"
    kafka = {name.removeprefix(prefix).lower(): value for name, value in exported.items() if name.startswith(prefix)}
    client = Client(KafkaBus(KafkaSettings.model_validate(kafka)), SystemClock(), say=lambda _: None)

    def decided() -> list[SignalGenerated]:
        return [one for one in client.read(SignalGenerated) if one.portfolio == "btc"]

    until(lambda: len(decided()) >= 3)
    times = sorted(to_us(one.time) for one in decided())
    assert {later - earlier for earlier, later in pairwise(times)} == {5_000_000}

    address = (home / "run" / "inference.address").read_text()
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    body = json.dumps({"portfolio": "btc"}).encode()

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
    assert not found or not found["decision"]["error"]
    measured = {name: seen((home / "run" / f"{name}.address").read_text()) for name in SERVICES}
    assert {name for name in CATALOGUE if name.startswith("tradeloop_feed_")} <= measured["ingest"]
    assert "tradeloop_predictions_total" in measured["inference"]
    assert {"tradeloop_bar_to_decision_seconds", "tradeloop_portfolio_equity_quote"} <= measured["execution"]


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


def started(output: str) -> list[str]:
    return re.findall(r"^starting (\w+)$", output, re.M)


def test_a_stack_without_portfolios_or_sources_is_refused(tmp_path: Path) -> None:
    stack, portfolios = Stack(tmp_path / "native", print), tmp_path / "portfolios"
    with pytest.raises(ServerError, match="no portfolios in"):
        stack.up(portfolios)
    portfolios.mkdir()
    (portfolios / "any.yaml").write_text("name: any")
    with pytest.raises(ServerError, match="no sources in"):
        stack.up(portfolios, tmp_path / "sources.yaml")


def prepared(checkout: Path) -> Path:
    """The files that the pages speak of; the folder of portfolios, which has those of all pages from the beginning."""
    bars = open_source((), load("example")).files["file:EUR/USD"]
    lines = bars.read_text().splitlines(keepends=True)
    (checkout / "bars.csv.gz").write_bytes(gzip.compress("".join(lines[:1500]).encode()))
    portfolios = checkout / "portfolios"
    portfolios.mkdir()
    (portfolios / "eur-usd.yaml").write_text((ROOT / "deploy" / "portfolios" / "eur-usd.yaml").read_text())
    (portfolios / "btc.yaml").write_text(block(TRADER, "yaml").replace("timeframe: 1m", "timeframe: 5s"))
    return portfolios


def test_pages_lead_from_nothing_through_an_upgrade_and_back_to_a_live_feed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS. Beside what the pages say: what is secret stays so, and what fails takes nothing else with it."""
    checkout = like_a_checkout(tmp_path / "checkout")
    home, portfolios = checkout / ".native", prepared(checkout)
    # The stack is told of all portfolios at its first start, and need not start anew for those of another page.
    making = {"PORTFOLIOS": "portfolios", "TLS": "1", "INFERENCE_PREDICT__TOKEN": TOKEN}
    stack = Stack(home, print)
    try:
        with Reader(checkout, SHORTER, making) as reader:
            first, *tour = steps(OPERATOR)
            (*install, up), (new, *_) = first.commands, steps(OPERATIONS, "Start and stop")[0].commands
            for command in (*install, new):
                reader.do(command)
            assert started(reader.do(up)) == list(PORTS)
            secrets = [home / "env", home / "postgres" / "password", home / "run" / "told", home / "run" / "passwords"]
            secrets += [*(home / "tls").rglob("*.key"), *(home / "tls").rglob("both.pem")]
            assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
            said = [reader.follow(step) for step in tour]
            [again] = [output for output in said if "starting execution" in output]
            assert started(again) == ["execution"]
            assert {f"{name} runs already" for name in PORTS if name != "execution"} <= set(again.splitlines())

            [trade], (upgrade, restore) = (steps(OPERATIONS, section) for section in ("Start and stop", "Upgrade"))
            (portfolios / "bars.yaml").unlink()  # to be written by its own page
            assert not started(reader.follow(trade))
            assert started(reader.follow(upgrade)) == list(PORTS)
            books = reader.do("tradeloop book show")
            assert "bars (bars): active; marked" in books
            assert reader.follow(restore).endswith(books)

            *_, live, end = steps(TRADER)
            assert not started(reader.follow(live))
            trade_live(home)
            other_services_models_are_left_alone(home, monkeypatch)
            password = (home / "postgres" / "password").read_text()
            assert not tells(home, [*json.loads((home / "run" / "passwords").read_text()).values(), password, TOKEN])
            stop, down = end.commands
            reader.do(stop)

            example = portfolios / "eur-usd.yaml"
            example.write_text(example.read_text().replace("strategy: example", "strategy: lost"))
            with pytest.raises(ServerError, match=r"(?s)preprocess ended.*lost"):
                stack.up(portfolios, tls=True)
            runs = {name: Server(Program(name, (), "", lambda: False), home / "run") for name in PORTS}
            pids = {name: server.pid for name, server in runs.items() if server.running}
            assert pids.keys() == set(SERVERS)
            assert re.findall(r"^stopping (\w+)$", reader.do(down), re.M) == list(reversed(SERVERS))
            assert not [pid for pid in pids.values() if pid is not None and lives(pid)]
            assert "nothing runs" in reader.do(f"{down} CLEAN=1")
            assert not home.exists()
    finally:
        stack.down(clean=True)
