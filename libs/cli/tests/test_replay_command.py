"""`tradeloop replay`: wrong input is one line; how it follows a stack to the last bar, over a bus in memory."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from libs.cli.tests.runs import make_run
from libs.cli.tests.stacks import World
from tradeloop.cli.client.client import Failed
from tradeloop.cli.commands.replay import replay_live
from tradeloop.cli.main import main
from tradeloop.cli.progress import Stages
from tradeloop.cli.report.files import Run
from tradeloop.common.errors import UserError
from tradeloop.common.market import to_us
from tradeloop.common.messages import Message, PortfolioMarked, ReplayRequested, RiskVerdict, SignalGenerated
from tradeloop.common.portfolio import portfolio_yaml

LENGTH = 40


@pytest.fixture(scope="module")
def run() -> Run:
    return make_run(LENGTH)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def book(tmp_path: Path, run: Run) -> str:
    path = tmp_path / "books" / "walk.yaml"
    path.parent.mkdir()
    path.write_text(portfolio_yaml(run.portfolio))
    return str(path)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["replay", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "either --portfolio FILE.yaml, or --universe NAME"),
        (["--universe", "crypto", "--portfolio", "x.yaml"], "either --portfolio FILE.yaml, or --universe NAME"),
        (["--portfolio", "x.yaml"], "x.yaml: No such file"),
        (["--universe", "gold"], "--portfolios FOLDER, or TRADELOOP_PORTFOLIO_FOLDER"),
        (["--universe", "gold", "--portfolios", "{books}"], "trades a universe gold; there is crypto"),
        (["--portfolio", "{book}", "--from", "noon"], "--from noon: give an ISO 8601 time"),
        (["--portfolio", "{book}", "--from", "2025-02-01", "--to", "2025-02-01"], "is not before --to 2025-02-01"),
        (["--portfolio", "{book}", "--speed", "0"], "--speed 0: give a positive number"),
        (["--portfolio", "{book}", "--prefix", "x", "--bars", "x.csv"], "do it before"),
        (["--portfolio", "{book}"], "set TRADELOOP_DATABASE_URL"),
    ],
)
def test_wrong_input_is_a_line_and_needs_no_server(
    capsys: pytest.CaptureFixture[str], book: str, options: list[str], says: str
) -> None:
    places = {"{book}": book, "{books}": str(Path(book).parent)}
    assert says in refused(capsys, *(places.get(option, option) for option in options))


def test_a_store_without_bars_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, book: str
) -> None:
    monkeypatch.setenv("TRADELOOP_DATABASE_URL", f"sqlite:///{tmp_path / 'bars.db'}")
    said = refused(capsys, "--portfolio", book)
    assert "no 1m bars of universe crypto are stored in sqlite:///" in said
    assert "--bars FILE" in said
    early = ["--universe", "crypto", "--portfolios", str(Path(book).parent), "--to", "2020-01-01"]
    assert "are stored in this range in" in refused(capsys, *early)


def test_a_kafka_that_is_not_there_is_named_soon(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, book: str
) -> None:
    monkeypatch.setenv("TRADELOOP_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("TRADELOOP_KAFKA__REQUEST_TIMEOUT_S", "1")
    began = time.monotonic()
    assert main(["replay", "--portfolio", book, "--bars", str(tmp_path / "x.csv")]) == 2
    assert time.monotonic() - began < 30
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("tradeloop: Kafka")
    assert "127.0.0.1:1" in last
    assert "TRADELOOP_KAFKA__BOOTSTRAP_SERVERS" in last


def replayed(run: Run, request: ReplayRequested) -> list[Message]:
    """What the services would publish for a request, each bar after the other."""
    found: list[Message] = []
    for mark, signal in zip(run.marks, run.signals, strict=True):
        if request.range.start < mark.time <= request.range.end:
            found += [mark, signal]
    return [*found, *run.orders, *run.fills, *run.transitions]


def test_it_follows_to_the_last_bar_and_counts_each_message_once(
    world: World, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(asked: ReplayRequested) -> Iterable[Message]:
        messages = [*replayed(run, asked), denied, denied.model_copy(update={"portfolio": "another"})]
        return [*messages[:10], *messages, denied]

    denied = RiskVerdict(
        universe=run.portfolio.universe.name,
        portfolio=run.portfolio.name,
        time=run.marks[5].time,
        code="max_position",
        measured=2.0,
        limit=1.0,
        text="",
    )
    world.serve("ingest", ReplayRequested, answer)
    assert replay_live(world.stack, Stages(), [run.portfolio], run.bars, None)
    said = capsys.readouterr().out
    rows = {line.rsplit(maxsplit=1)[0].strip(): line.split()[-1] for line in said.splitlines() if line.startswith("  ")}
    assert rows["bars"] == rows["signals"] == str(LENGTH)
    assert rows["orders"] == rows["fills"] == str(len(run.fills))
    assert rows["risk gate, max_position"] == "1"
    assert rows["transitions"] == str(len(run.transitions))
    assert rows["final equity"] == f"{run.marks[-1].equity:,.2f}"
    assert "dead letters: 0" in said


def test_only_what_was_not_traded_is_asked_for(world: World, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[ReplayRequested] = []

    def answer(request: ReplayRequested) -> Iterable[Message]:
        asked.append(request)
        return replayed(run, request)

    world.serve("ingest", ReplayRequested, answer)
    world.publish(*run.marks[:10], run.marks[30].model_copy(update={"portfolio": "another"}))
    assert replay_live(world.stack, Stages(), [run.portfolio], run.bars, None)
    assert [to_us(request.range.start) for request in asked] == [int(run.bars.open_us[10])]
    said = capsys.readouterr().err
    assert "10 of 40 bars were traded already, up to 2022-01-03 00:10 UTC; the others follow\n" in said

    assert replay_live(world.stack, Stages(), [run.portfolio], run.bars, None)
    assert len(asked) == 1
    said = capsys.readouterr().err
    assert said == (
        "All 40 bars were traded already, up to 2022-01-03 00:40 UTC: a new replay of them needs --prefix\n"
    )


def test_a_request_that_ingest_refuses_ends_it(world: World, run: Run) -> None:
    def refuse(asked: ReplayRequested) -> Iterable[Message]:
        raise UserError("replay of crypto: no 1m bars are stored")

    world.serve("ingest", ReplayRequested, refuse)
    with pytest.raises(UserError, match=r"^replay of crypto: no 1m bars are stored$"):
        replay_live(world.stack, Stages(), [run.portfolio], run.bars, None)


def fail_on(time_us: int) -> object:
    def handle(signal: SignalGenerated) -> Iterable[Message]:
        if to_us(signal.time) == time_us:
            raise RuntimeError("a bug")
        return []

    return handle


@pytest.mark.parametrize("ends", [True, False])
def test_what_was_given_up_on_is_told(world: World, run: Run, ends: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """The replay goes on where it can; where nothing comes any more, it does not wait for ever."""
    last_us = int(run.bars.close_us[-1])
    last = [run.marks[-1], run.signals[-1]] if ends else []

    def late() -> None:
        if world.clock.monotonic() > 5:
            world.publish(*last)
            last.clear()

    world.serve("ingest", ReplayRequested, lambda asked: [m for m in replayed(run, asked) if not _at(m, last_us)])
    world.serve("execution", SignalGenerated, fail_on(int(run.bars.close_us[-2])))  # type: ignore[arg-type]
    world.on_wait = late
    if ends:
        assert not replay_live(world.stack, Stages(), [run.portfolio], run.bars, None)
        said = capsys.readouterr().out
        assert "dead letters: 1" in said
        assert "execution gave up on inference.signals.v1/" in said
    else:
        with pytest.raises(Failed, match=r"^execution gave up on inference.signals.v1/.*a bug$"):
            replay_live(world.stack, Stages(), [run.portfolio], run.bars, None)
        assert world.said == ["still waiting for ingest, silent for 15 s: is it running?"]


def _at(message: Message, time_us: int) -> bool:
    return isinstance(message, SignalGenerated | PortfolioMarked) and to_us(message.time) == time_us


def test_it_names_the_service_that_must_speak_next(world: World, run: Run) -> None:
    last = [run.signals[-1]]

    def late() -> None:
        if world.clock.monotonic() > 40:
            world.publish(*last)
            last.clear()

    world.serve("ingest", ReplayRequested, lambda asked: [*run.marks[:-1], *run.signals[:-1], run.marks[-1]])
    world.on_wait = late
    world.publish_frames(run.bars, "crypto")
    assert replay_live(world.stack, Stages(), [run.portfolio], run.bars, None)
    assert world.said == ["still waiting for preprocess, silent for 15 s: is it running?"]
