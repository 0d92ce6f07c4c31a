"""Five processes over real servers, fed live by a faulty venue through the real ccxt, killed on the way; replayed."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.stack import Servers
from tradeloop.cli.main import main
from tradeloop.common.bar_store.sql import SqlBarStore
from tradeloop.common.clock import SystemClock
from tradeloop.common.market import BarArrays, Instrument, Timeframe, Universe, align, to_us
from tradeloop.common.messages import (
    BarFrame,
    LiveReported,
    LiveRequested,
    OrderFilled,
    PortfolioEvent,
    PortfolioMarked,
    SignalGenerated,
)
from tradeloop.common.model_store.mlflow import MlflowModelStore
from tradeloop.common.model_store.port import model_name
from tradeloop.common.portfolio import Costs, Portfolio, RiskLimits
from tradeloop.common.strategy import load
from tradeloop.ingest.contracts.fake_venue import FakeVenue, Faults, Market
from tradeloop.ingest.contracts.fake_venue.market import Bars
from tradeloop.training.adapters.random_policy import random_policy

SYMBOLS = ("BTC/USDT", "ETH/USDT")
S1 = Timeframe.S1
HISTORY_S = 60
FRAMES = 160
KILLED = ("ingest", "execution", "inference", "preprocess", "ingest")
FAULTS = {"missing": 0.2, "repeated": 0.1, "reordered": 0.1, "lying_closed": 0.1, "malformed": 0.01}


class Corrected(Market):
    """A market whose venue has every fifth second's close wrong when its history is first asked for it.

    A fifth of a second after that it is right: as it is for whatever closed before `since_us`.
    """

    corrects, since_us = True, 0

    def __init__(self, symbols: tuple[str, ...]) -> None:
        super().__init__(symbols)
        self._asked_us: dict[tuple[str, int], int] = {}
        """When the history was first asked for a bar, by symbol and open."""

    def bars(
        self,
        symbol: str,
        timeframe: str,
        start_us: int,
        end_us: int,
        *,
        known_us: int | None = None,
        part: bool = False,
    ) -> Bars:
        found = super().bars(symbol, timeframe, start_us, end_us, known_us=known_us, part=part)
        if known_us is None:
            return found
        for open_us in found.open_us[found.close_us <= known_us].tolist():
            self._asked_us.setdefault((symbol, open_us), known_us)
        return self._at_first(symbol, found, known_us)

    def bar(self, symbol: str, timeframe: str, open_us: int, until_us: int) -> Bars:
        return self._at_first(symbol, super().bar(symbol, timeframe, open_us, until_us), until_us)

    def _at_first(self, symbol: str, found: Bars, known_us: int) -> Bars:
        asked_us = np.array([self._asked_us.get((symbol, open_us), known_us) for open_us in found.open_us.tolist()])
        is_wrong = (found.open_us // S1.us % 5 == 3) & (known_us < asked_us + S1.us // 5)
        is_wrong &= found.close_us > self.since_us
        return replace(found, close=np.where(is_wrong, found.open, found.close)) if self.corrects else found


def true_bars(venue: FakeVenue, ids: tuple[str, ...], start_us: int, end_us: int) -> BarArrays:
    """What the venue has, whatever it said."""
    series = [venue.market.bars(one.partition(":")[2], "1s", start_us, end_us).series() for one in ids]
    return align(ids, S1, series)


def test_five_processes_trade_a_faulty_venue_and_a_replay_does_the_same(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    strategy, clock = load("probe_live"), SystemClock()
    instruments = tuple(Instrument(id=f"binance:{symbol}", lot_size=1e-3) for symbol in SYMBOLS)
    universe = Universe(name="seconds", instruments=instruments, timeframe=S1, higher_timeframes=(Timeframe.S5,))
    portfolio = Portfolio(
        name="seconds-book",
        universe=universe,
        strategy="probe_live",
        model_alias="proof",
        costs=Costs(slippage_bps=0.1),
        limits=RiskLimits(max_drawdown=1.0),
        decision_within=1.0,
    )
    market = Corrected(SYMBOLS)
    with FakeVenue(market, faults=Faults(seed=5)) as venue:
        venue.faults.change(**FAULTS)
        now_us = to_us(clock.now())
        past = true_bars(venue, universe.ids, now_us - 600 * S1.us, now_us - 60 * S1.us)
        values = strategy.feature_set.compute({S1: past}, S1).values
        policy = random_policy(strategy, universe.name, values, hidden=(), gain=1.5, seed=1)
        models = MlflowModelStore(servers.mlflow)
        name = model_name(strategy.name, universe.name)
        models.set_alias(name, "proof", models.register(name, policy, metrics={}, parameters={}).version)
        sources = tmp_path / "sources.yaml"
        sources.write_text(f"binance: {{url: {venue.url}}}\n")
        with servers.stack([portfolio], tmp_path) as stack:
            patience = {"LIVE__RETRY_S": "0.2", "LIVE__RETRY_MOST_S": "2", "LIVE__CHECK_EVERY_S": "2"}
            stack.extra["ingest"] = {"SOURCES": str(sources), **patience}
            stack.add("ingest")
            late = stack.processes.pop("inference-0")
            stack.start()
            began = clock.now()
            market.since_us = to_us(began)
            report = stack.ask(
                LiveRequested(
                    request_id="live",
                    universe=universe,
                    command="start",
                    time=began,
                    since=began - timedelta(seconds=HISTORY_S),
                ),
                LiveReported,
            )
            assert report.state == "started"
            # Who starts last finds bars that went by, undecided.
            stack.eventually(lambda: len(stack.client.read(PortfolioMarked)) >= HISTORY_S, "marks of the history")
            stack.processes["inference-0"] = late
            late.start()

            def frames() -> list[BarFrame]:
                found = stack.client.read(BarFrame)
                return [one for one in found if one.timeframe is S1 and not one.revision]

            for number, service in enumerate(KILLED):
                stack.eventually(lambda n=number: len(frames()) >= HISTORY_S + 10 + 18 * n, "frames")  # type: ignore[misc]
                stack.processes[f"{service}-0"].kill()
                if number == 1:
                    venue.faults.stall(2.0)
                elif number == 3:
                    venue.faults.disconnect_now()
                stack.supervise()
            market.corrects = False
            venue.faults.change(**dict.fromkeys(FAULTS, 0.0))
            stack.eventually(lambda: len(frames()) >= FRAMES, "frames")

            def differing() -> list[str]:
                opens = [to_us(one.open_time) for one in frames()]
                span = opens[0], opens[-1] + 1
                with closing(SqlBarStore(stack.addresses.database, clock)) as store:
                    stored, true = store.read(universe.ids, S1, *span), true_bars(venue, universe.ids, *span)
                columns = ("open", "high", "low", "close", "volume")
                close = {each: np.isclose(getattr(stored, each), getattr(true, each), rtol=1e-12) for each in columns}
                return [each for each, same in close.items() if not same.all()]

            stack.eventually(lambda: not differing(), "the last corrections")
            stopped = stack.ask(
                LiveRequested(request_id="stop", universe=universe, command="stop", time=clock.now()), LiveReported
            )
            assert stopped.state == "stopped"
            last = frames()[-1]
            stack.eventually(lambda: stack.settled({portfolio.name: to_us(last.close_time)}), "the last decision")
            # One that was missed is settled without its signal.
            stack.eventually(lambda: stack.client.read(SignalGenerated)[-1].time == last.close_time, "its signal")
            stack.stop()

            published = frames()
            opens = [to_us(one.open_time) for one in published]
            assert opens == list(range(opens[0], opens[-1] + 1, S1.us)), "no hole, and nothing twice"
            assert not differing(), "what is stored is what the venue has"
            missed = [one for one in stack.client.read(PortfolioEvent) if one.kind == "decision_missed"]
            assert len(missed) >= sum(one.catches_up for one in published) > 0
            decided = {one.time for one in stack.client.read(SignalGenerated)}
            assert decided == {one.time for one in stack.client.read(PortfolioMarked)}, "each bar has its decision"
            assert stack.client.read(OrderFilled), "it trades"
            revised = [one for one in stack.client.read(BarFrame) if one.timeframe is S1 and one.revision]
            assert revised, "what the venue corrects goes out again"

            file = tmp_path / "portfolios.yaml"
            file.write_text((tmp_path / stack.folder.name / "portfolios" / "seconds-book.yaml").read_text())
            for variable, value in {
                "TRADELOOP_KAFKA__BOOTSTRAP_SERVERS": stack.addresses.kafka,
                "TRADELOOP_KAFKA__PREFIX": stack.prefix,
                "TRADELOOP_DATABASE_URL": stack.addresses.database,
                "TRADELOOP_MLFLOW_TRACKING_URI": stack.addresses.mlflow,
                "COLUMNS": "160",
            }.items():
                monkeypatch.setenv(variable, value)
            command = ["replay", "--portfolio", str(file), "--prefix", "again", "--out", str(tmp_path)]
            same = main(command) == 0
            said = capsys.readouterr().out
            assert same, said
            assert "Largest relative difference of equity: 0.0e+00" in said
            assert ", 0 corrections" not in said
