"""A thousand portfolios, and a universe of five hundred instruments: what it takes grows with them, and no faster.

Work is counted and not timed: `make bench SUBJECTS=crowd` times the same crowds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from tests.e2e.crowds import START, Crowd
from tradeloop.common.messages import (
    FeaturesComputed,
    ModelActivated,
    OrderUpdated,
    PortfolioEvent,
    PortfolioMarked,
    SignalGenerated,
    Transition,
)

UNIVERSES, EACH = 100, 10
PORTFOLIOS = UNIVERSES * EACH
DAYS = 8


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Each model that is loaded has a line in the log."""
    with capture_logs():
        yield


@pytest.fixture
def crowd() -> Crowd:
    """A crowd with a past: a model of every day, and something on record about every portfolio."""
    crowd = Crowd(UNIVERSES, EACH)
    crowd.activate(DAYS)
    crowd.publish(
        PortfolioEvent(
            universe=portfolio.universe.name,
            portfolio=portfolio.name,
            time=START + timedelta(days=day),
            kind="transition_missing",
            reason="of long ago",
        )
        for day in range(3)
        for portfolio in crowd.portfolios
    )
    return crowd


def test_H5_a_thousand_portfolios_start_decide_and_move(crowd: Crowd) -> None:
    ledger, published, read = crowd.ledger, crowd.published, crowd.read

    # They start: a few models a step, each once; each partition is read once, whatever the number of portfolios.
    loads: list[int] = []
    crowd.start()
    crowd.run(lambda: loads.append(crowd.loaded - sum(loads)))
    assert max(loads) <= 16
    assert UNIVERSES <= crowd.loaded <= 2 * UNIVERSES, "not once for each of their portfolios"
    assert read(ModelActivated) == PORTFOLIOS * DAYS
    assert read(PortfolioEvent) == PORTFOLIOS * 3
    assert ledger.calls["load"] == ledger.calls["unsent"] == 16
    assert crowd.replicas[0].asked.total() <= 9 * 12, "a few times for each partition, and not for each portfolio"

    # They decide: all of them in a few transactions, and nothing is read or loaded any more but the window, once.
    for n in range(1, 5):
        crowd.forget()
        crowd.bar()
        crowd.run()
        assert published(SignalGenerated) == published(PortfolioMarked) == n * PORTFOLIOS
        assert not crowd.loaded
        assert ledger.calls["record"] <= 4
        assert read(FeaturesComputed) == (UNIVERSES if n == 1 else 0)
        assert read(ModelActivated) == read(PortfolioEvent) == 0
        assert crowd.replicas[0].asked.total() <= 12
    assert published(Transition) == 2 * PORTFOLIOS, "the window takes two bars, and a reward one more"

    # They move: two more processes of each service take over what they get. No process reads partitions or loads
    # models of others, and none does so once for each portfolio.
    crowd.forget()
    crowd.start(2)
    crowd.run()
    crowd.bar()
    crowd.run()
    assert published(SignalGenerated) == 5 * PORTFOLIOS
    shares = [crowd.universes_of(replica) for replica in crowd.replicas]
    assert sorted(name for share in shares for name in share) == [universe.name for universe in crowd.universes]
    for share, replica in zip(shares, crowd.replicas, strict=True):
        assert 20 < len(share) < 50, "about a third each"
        assert {partition.number for partition in replica.reads} <= replica.mine
        assert replica.loaded.keys() <= share
        assert replica.loaded.total() <= 2 * len(share)
    for kind in (ModelActivated, PortfolioEvent, SignalGenerated, PortfolioMarked, FeaturesComputed):
        assert read(kind) <= published(kind), kind.__name__
    assert ledger.calls["load"] <= 16 + 3

    # One of them goes, and the others go on for it.
    crowd.forget()
    crowd.stop(crowd.replicas[0])
    crowd.bar()
    crowd.run()
    assert published(SignalGenerated) == 6 * PORTFOLIOS
    assert published(Transition) == 4 * PORTFOLIOS
    for kind in (ModelActivated, PortfolioEvent, SignalGenerated, PortfolioMarked, FeaturesComputed):
        assert read(kind) <= published(kind), kind.__name__
    crowd.stop()


def test_H5_five_hundred_instruments_in_one_universe() -> None:
    """No message comes near the limit of 1,000,000 bytes: with the observation in it a signal had 2.65 MB."""
    crowd = Crowd(1, 1, instruments=500, features=8, window=32)
    crowd.start()
    for _ in range(34):
        crowd.bar()
        crowd.run()
    signals = crowd.published(SignalGenerated)
    assert signals == crowd.published(PortfolioMarked) == 34
    assert crowd.published(Transition) == 2
    assert crowd.published(OrderUpdated) > 3 * 500, "it trades most of them on each bar"
    largest = crowd.largest()
    assert largest["inference.signals.v1"] > 100_000, "it decided on all of them"
    assert {topic: size for topic, size in largest.items() if size > 200_000} == {}
    assert Counter(runner.counters.dead_letters for runner in crowd.runners) == {0: 2}
    crowd.stop()


def test_H5_what_waits_is_bounded_by_its_size_and_stays_on_the_bus() -> None:
    """A few of such large messages are in memory, not as many as of small ones; all of them are taken in the end."""
    crowd = Crowd(1, 1, instruments=500, features=8, window=2)
    for _ in range(45):
        crowd.bar()
    crowd.start()
    inference, execution = crowd.runners
    execution.step()
    assert 1 < len(execution.service.pending()) < 40, "it waits for a decision, with few frames"
    inference.step()
    assert 1 < len(inference.service.pending()) < 40
    crowd.run()
    assert crowd.published(SignalGenerated) == crowd.published(PortfolioMarked) == 45
    assert not execution.service.pending()
    crowd.stop()
