from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tradeloop.common.clock import ManualClock, SystemClock
from tradeloop.common.errors import UserError
from tradeloop.ingest.adapters.http import Throttle
from tradeloop.ingest.adapters.sections import CcxtSection, Reference, SimulatedSection
from tradeloop.ingest.adapters.simulated_source import SimulatedSource
from tradeloop.ingest.adapters.sources import (
    load_sources,
    open_source,
)


def written(folder: Path, content: str) -> Path:
    path = folder / "sources.yaml"
    path.write_text(content)
    return path


def test_a_file_has_a_section_for_each_venue(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "testnet: {exchange: binance, market: swap, url: 'http://127.0.0.1:1/'}\n"
        "kraken: {secret: {file: /run/secrets/kraken}}\n"
        "simulated:\n"
        "play: {adapter: simulated, seed: 7}\n",
    )
    sources = load_sources(path)
    assert sources["testnet"] == CcxtSection(exchange="binance", market="swap", url="http://127.0.0.1:1")
    assert sources["kraken"] == CcxtSection(secret=Reference(file=Path("/run/secrets/kraken")))
    assert sources["simulated"] == SimulatedSection()
    opened = open_source("play", sources, SystemClock())
    assert isinstance(opened, SimulatedSource)
    assert opened.venue == "play"
    assert load_sources(None) == {}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("binance: {adaptor: ccxt}", "binance.adaptor: Extra inputs are not permitted"),
        ("binance: {adapter: cctx}", "binance: "),
        ("binance: {url: 'http://me:secret@host'}", "a URL holds no credentials"),
        ("binance: {url: 'host:80'}", "base URL"),
        ("binance: {key: abc}", "binance.key"),
        ("kraken: {key: {env: A, file: b}}", "either env: VARIABLE or file: PATH"),
        ("[]", "give a section for each venue"),
        ("a: [", "no valid YAML"),
        ("UPPER: {}", "UPPER"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, content: str, told: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UserError) as raised:
        load_sources(path)
    line = str(raised.value)
    assert line.startswith(f"{path}: ")
    assert told in line
    assert "\n" not in line
    assert "secret@" not in line


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_sources(tmp_path / "missing.yaml")


def test_an_unknown_venue_names_those_like_it() -> None:
    with pytest.raises(UserError, match="has no source binanc: did you mean source binance"):
        open_source("binanc", {}, SystemClock())
    with pytest.raises(UserError, match="did you mean source simulated"):
        open_source("simulate", {}, SystemClock())


def test_a_source_without_a_network_has_no_url() -> None:
    with pytest.raises(UserError, match="has no network"):
        open_source("simulated", {}, SystemClock(), url="http://127.0.0.1:1")


def test_a_secret_is_read_from_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "abc")
    (tmp_path / "key").write_text("def\n")
    assert Reference(env="SOME_KEY").read("x").get_secret_value() == "abc"
    secret = Reference(file=tmp_path / "key").read("x")
    assert secret.get_secret_value() == "def"
    assert "def" not in repr(secret)
    with pytest.raises(UserError, match="x is missing: set the environment variable NO_SUCH_KEY"):
        Reference(env="NO_SUCH_KEY").read("x")
    with pytest.raises(UserError, match="cannot be read"):
        Reference(file=tmp_path / "none").read("x")


def test_requests_keep_to_their_rate_after_a_burst() -> None:
    clock, waited = ManualClock(datetime(2024, 1, 1, tzinfo=UTC)), list[float]()

    def wait(seconds: float) -> None:
        waited.append(seconds)
        clock.advance(seconds)

    throttle = Throttle(3.0, clock, wait)
    began_s = clock.monotonic()
    for _ in range(198):
        throttle.take()
    assert clock.monotonic() - began_s == pytest.approx(60.0), "Alpaca lets 200 through in a minute"
    assert len(waited) == 198 - 18
    slow = Throttle(5 / 60, clock, wait)
    began_s = clock.monotonic()
    for _ in range(5):
        slow.take()
    assert clock.monotonic() - began_s == pytest.approx(48.0)
    clock.advance(1000.0)
    del waited[:]
    slow.take()
    assert not waited, "a rest is not made up for by more than a burst"
    slow.take()
    assert waited == [pytest.approx(12.0)]
