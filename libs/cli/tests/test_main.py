"""The command as a user meets it: what it says of itself, the topics, and its exit codes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_S
from tradeloop.cli.commands import topics
from tradeloop.cli.main import main
from tradeloop.common.errors import UserError
from tradeloop.common.messages.topics import CATALOGUE, topic_of
from tradeloop.common.runtime.service import Service
from tradeloop.execution.application import Execution
from tradeloop.inference.application import Inference
from tradeloop.ingest.application import Ingest
from tradeloop.preprocess.application import Preprocess
from tradeloop.training.application import Training

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_help_lists_the_commands_and_says_where_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for command in ("demo", "train", "backtest", "replay", "models", "mlflow", "portfolio", "topics", "strategy"):
        assert f"│ {command} " in said
    assert "Start with tradeloop demo" in said


@pytest.mark.parametrize(
    ("command", "teaches"),
    [
        (
            "demo",
            ["--bars", "--strategy", "--out", "--seed", "--steps", "byte for byte", "exit 1", "--home", "--seeds"],
        ),
        *(
            (command, ["--bars", "--portfolio", "--from", "--to", "--name"])
            for command in ("demo", "train", "backtest")
        ),
        ("models", ["list", "show"]),
        ("mlflow", ["--home", "--port"]),
        ("train", ["--bars", "--strategy", "--home", "TRADELOOP_HOME", "champion"]),
        ("train", ["--portfolio", "--stack", "running", "same path", "TRADELOOP_KAFKA__BOOTSTRAP_SERVERS"]),
        ("portfolio", ["new", "check"]),
        ("replay", ["--portfolio", "--universe", "--from", "--to", "--speed", "--prefix", "--again", "Exit 1"]),
        ("backtest", ["--model", "--home", "baselines", "demo/model"]),
        ("topics", ["--markdown", "apply", "diff"]),
        ("dlq", ["list", "show", "replay"]),
        ("strategy", ["new", "check", "list"]),
    ],
)
def test_help_of_a_command(capsys: pytest.CaptureFixture[str], command: str, teaches: list[str]) -> None:
    assert main([command, "--help"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert [words for words in teaches if words not in said] == []


HEAVY = {
    *("aiohttp", "alembic", "alpaca", "ccxt", "confluent_kafka", "exchange_calendars", "feast", "fastapi", "massive"),
    *("matplotlib", "mlflow", "numba", "numpy", "onnxruntime", "pandas", "polars", "psycopg", "pyarrow", "pydantic"),
    *("scipy", "sqlalchemy", "stable_baselines3", "talib", "torch", "uvicorn"),
}


def loaded(*arguments: str) -> set[str]:
    """The libraries that are loaded when a command is done, in a process of its own."""
    code = (
        f"import sys; from tradeloop.cli.main import main; main({[*arguments]}); print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    return {module.partition(".")[0] for module in done.stderr.split()}


def test_help_loads_no_heavy_library() -> None:
    """What makes help answer at once: each of these takes from a tenth of a second to eight."""
    found = loaded("--help")
    assert "typer" in found
    assert not HEAVY & found


def test_a_look_into_a_file_loads_what_reads_files(tmp_path: Path) -> None:
    (file := tmp_path / "bars.csv").write_text(
        "time,open,high,low,close\n2024-01-01 00:00,1,2,1,2\n2024-01-01 00:01,2,3,2,3\n", encoding="utf-8"
    )
    assert HEAVY & loaded("bars", "inspect", str(file)) == {"numpy", "polars", "pydantic"}


def test_topics_lists_every_topic_in_full(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["topics"]) == 0
    words = capsys.readouterr().out.split()
    for topic in CATALOGUE.values():
        assert {topic.name, topic.message.__name__, *topic.writers, *topic.readers} <= set(words)


def test_topics_in_markdown_are_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topics", "--markdown"]) == 0
    assert capsys.readouterr().out == (DOCS / "topics.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("service", [Execution, Inference, Ingest, Preprocess, Training])
def test_readers_are_those_who_read(service: type[Service]) -> None:
    read = {topic_of(message).name for message in service.consumes}  # type: ignore[attr-defined]
    assert read == {topic.name for topic in CATALOGUE.values() if str(service.name) in topic.readers}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Usage"),
        (["dmeo"], "dmeo"),
        (["demo", "--setps", "1"], "--setps"),
        (["demo", "--steps", "many"], "valid integer"),
        (["demo", "--steps", "0"], "--steps"),
        (["demo", "--seed", "-1"], "--seed"),
        (["topics", "please"], "please"),
    ],
)
def test_a_usage_error(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert main(arguments) == 2
    said = "".join(capsys.readouterr())
    assert says in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("bars.csv: no rows:\n  give a longer file"), 2, "tradeloop: bars.csv: no rows: give a longer file"),
        (KeyError("lost"), 1, "tradeloop: KeyError: 'lost' (--debug before the command shows more)"),
    ],
)
def test_every_error_is_one_line_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fail(markdown: bool) -> None:
        raise error

    monkeypatch.setattr(topics, "print_topics", fail)
    assert main(["topics"]) == code
    assert capsys.readouterr().err == line + "\n"


def test_an_interruption_wins_over_what_a_library_makes_of_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(markdown: bool) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise RuntimeError("a worker died") from error

    monkeypatch.setattr(topics, "print_topics", interrupt)
    assert main(["topics"]) == 130
    assert capsys.readouterr().err == "tradeloop: interrupted; nothing was left half-written\n"


def test_what_a_command_says_of_its_interruption_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as that a service goes on alone; Typer makes an exit of any interruption."""

    def interrupt(markdown: bool) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; training goes on") from None

    monkeypatch.setattr(topics, "print_topics", interrupt)
    assert main(["topics"]) == 130
    assert capsys.readouterr().err == "tradeloop: interrupted; training goes on\n"


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(markdown: bool) -> None:
        raise UserError("by design")

    monkeypatch.setattr(topics, "print_topics", fail)
    monkeypatch.setenv("TRADELOOP_DEBUG", "")  # what the option sets goes away with the test
    assert main(["--debug", "topics"]) == 2
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert said.endswith("tradeloop: by design\n")
