"""The contract of the history: `check_history`. It raises `AssertionError` and needs no test framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime

from tradeloop.common.bus.port import LogPosition, Partition
from tradeloop.common.contracts.steps import fresh
from tradeloop.common.features import FeatureSet, log_return
from tradeloop.common.market import Instrument, Timeframe, Universe, from_us, to_us
from tradeloop.common.messages import FeaturesComputed, Message, ModelActivated, PortfolioMarked, SignalGenerated
from tradeloop.inference.ports import History

MakeHistory = Callable[[], History]
"""Opens the history of the same records at every call, as a restarted process does."""
Publish = Callable[[Sequence[Message]], Sequence[LogPosition]]
"""Publishes messages where the history reads their kind, and tells where each one stands."""

_SET = FeatureSet([log_return(1), log_return(5)])
_OTHER_SET = FeatureSet([log_return(2)])
_START_US = 1_767_571_200_000_000
"""2026-01-05, UTC."""


def check_history(make_history: MakeHistory, publish: Publish) -> None:
    """Run all of `HISTORY_CHECKS`: universes get new names at every run, topics may hold whatever else."""
    for check in HISTORY_CHECKS:
        check(make_history, publish)


def features_before_a_message_are_the_last_ones(make_history: MakeHistory, publish: Publish) -> None:
    universe = _universe()
    published = _features(universe, 1000)
    positions = publish(published)
    with closing(make_history()) as history:
        for at in (0, 1, 30, 900):
            for rows in (0, 1, 31, 700):
                got = history.features_before(to_us(published[at].time), positions[at], universe, _SET, rows)
                _are(got, published[max(0, at - rows) : at], f"the last {rows} features before bar {at}")


def features_that_came_twice_count_once(make_history: MakeHistory, publish: Publish) -> None:
    universe = _universe()
    published = _features(universe, 61)
    publish(published[:50])
    *_, position = publish(published[20:])
    with closing(make_history()) as history:
        got = history.features_before(to_us(published[60].time), position, universe, _SET, 50)
        _are(got, published[10:60], "the features of bars of which some came twice")


def features_of_others_count_for_nothing(make_history: MakeHistory, publish: Publish) -> None:
    universe, other, nobody = _universe(), _universe(), _universe()
    published, foreign = _features(universe, 61), _features(universe, 60, _OTHER_SET)
    publish([*published[:30], *foreign, *_features(other, 60), *published[30:60]])
    [position] = publish(published[60:])
    with closing(make_history()) as history:
        got = history.features_before(to_us(published[60].time), position, universe, _SET, 40)
        _are(got, published[20:60], "the features between those of other universes and sets")
        [first] = _features(nobody, 1)
        [begin] = publish([first])
        nothing = history.features_before(to_us(first.time), begin, nobody, _SET, 40)
        _are(nothing, [], "the features of a universe of which there are none")


def features_of_later_bars_are_not_before_a_message(make_history: MakeHistory, publish: Publish) -> None:
    universe = _universe()
    published = _features(universe, 60)
    publish(published)
    [again] = publish(published[40:41])
    with closing(make_history()) as history:
        got = history.features_before(to_us(published[40].time), again, universe, _SET, 30)
        _are(got, published[10:40], "the features before a bar that came again after later ones")


def features_that_came_late_are_left_out(make_history: MakeHistory, publish: Publish) -> None:
    """They came when all had gone on without them, and so must whoever comes after that."""
    universe = _universe()
    published = _features(universe, 61)
    publish([*published[:50], *published[51:55], published[50], *published[55:60]])
    [position] = publish(published[60:])
    with closing(make_history()) as history:
        got = history.features_before(to_us(published[60].time), position, universe, _SET, 20)
        _are(got, [*published[39:50], *published[51:60]], "the features before a bar, one of which came late")


def the_last_mark_is_that_of_the_portfolio(make_history: MakeHistory, publish: Publish) -> None:
    universe, one, another = _universe(), fresh("portfolio"), fresh("portfolio")

    def marked(portfolio: str, bar: int) -> PortfolioMarked:
        return PortfolioMarked(
            universe=universe.name,
            portfolio=portfolio,
            time=_close(bar),
            cash=float(bar),
            equity=1.0,
            peak_equity=1.0,
            drawdown=0.0,
            state="active",
            positions=(),
        )

    with closing(make_history()) as history:
        assert history.marked(universe, one) is None, "a portfolio that was never marked has a last mark"
        first = [marked(one, 1), marked(one, 2), marked(one, 2), marked(one, 1)]
        positions = publish([*first, *(marked(another, bar) for bar in range(600))])
        history.forget()
        last = history.marked(universe, one)
        assert last == (marked(one, 2), positions[2]), "a portfolio's last mark is not found, or not where it was last"
        last = history.marked(universe, another)
        assert last == (marked(another, 599), positions[-1]), "another portfolio's last mark is not found"
        assert history.marked(_universe(), one) is None, "a portfolio was marked in a universe in which it was not"


def features_are_read_on_from_a_position(make_history: MakeHistory, publish: Publish) -> None:
    universe, other = _universe(), _universe()
    published = _features(universe, 40)
    positions = publish(published[:20])
    publish(_features(other, 700))
    positions = [*positions, *publish([*_features(universe, 40, _OTHER_SET), *published[20:]])[40:]]
    with closing(make_history()) as history:
        read_on = history.features_on(universe, _SET)
        for at, limit in ((0, 40), (0, 5), (19, 3), (20, 100), (39, 1)):
            got = read_on(positions[at], limit)
            _are([message for _, message, _ in got], published[at : at + limit], f"{limit} features from {at} on")
            assert [where for _, _, where in got] == positions[at : at + limit], "features stand elsewhere"
            assert [time_us for time_us, _, _ in got] == [to_us(one.time) for one in published[at : at + limit]]


def a_message_on_another_topic_has_the_same_history(make_history: MakeHistory, publish: Publish) -> None:
    """It stands there when it is tried again."""
    universe = _universe()
    published = _features(universe, 60)
    publish(published)
    elsewhere = LogPosition(Partition(fresh("retry"), 0), 3)
    with closing(make_history()) as history:
        got = history.features_before(to_us(published[59].time), elsewhere, universe, _SET, 40)
        _are(got, published[19:59], "the features before a message that stands on another topic")


def activations_are_those_of_the_portfolio_in_order(make_history: MakeHistory, publish: Publish) -> None:
    universe, one, another = _universe(), fresh("portfolio"), fresh("portfolio")

    def activated(portfolio: str, bar: int, version: str) -> ModelActivated:
        return ModelActivated(
            universe=universe.name,
            portfolio=portfolio,
            time=_close(bar),
            model="m",
            version=version,
            model_id=version,
        )

    log = [activated(one, 1, "1"), activated(another, 2, "9"), activated(one, 5, "2"), activated(one, 1, "1")]
    publish(log)
    with closing(make_history()) as history:
        _are(history.activations(universe, one), [log[0], log[2]], "the activations for a portfolio")
        _are(history.activations(universe, fresh("portfolio")), [], "the activations for a portfolio that had none")
        _are(history.activations(_universe(), one), [], "the activations in a universe that had none")


def the_last_decision_is_that_of_the_portfolio(make_history: MakeHistory, publish: Publish) -> None:
    universe, one, another = _universe(), fresh("portfolio"), fresh("portfolio")

    def decided(portfolio: str, bar: int) -> SignalGenerated:
        return SignalGenerated(
            universe=universe.name,
            portfolio=portfolio,
            time=_close(bar),
            instruments=universe.ids,
            targets=(0.0, 0.0),
            feature_set=_SET.id,
        )

    with closing(make_history()) as history:
        none = history.decided(universe, one)
        assert none is None, f"a portfolio that never decided has a last decision, {none}"
        publish([decided(one, 1), decided(one, 2), decided(one, 1), *(decided(another, bar) for bar in range(600))])
    with closing(make_history()) as history:
        last = history.decided(universe, one)
        assert last == decided(one, 2), f"a portfolio's last decision, at {_close(2)}, is found as {last}"
        assert history.decided(_universe(), one) is None, "a portfolio decided in a universe in which it did not"


HISTORY_CHECKS: Sequence[Callable[[MakeHistory, Publish], None]] = (
    features_before_a_message_are_the_last_ones,
    features_that_came_twice_count_once,
    features_of_others_count_for_nothing,
    features_of_later_bars_are_not_before_a_message,
    a_message_on_another_topic_has_the_same_history,
    activations_are_those_of_the_portfolio_in_order,
    the_last_decision_is_that_of_the_portfolio,
    features_that_came_late_are_left_out,
    the_last_mark_is_that_of_the_portfolio,
    features_are_read_on_from_a_position,
)
"""The contract of a history, promise by promise: for test runners that want to name each one."""


def _universe() -> Universe:
    instruments = (Instrument(id="x:A"), Instrument(id="x:B"))
    return Universe(name=fresh("universe"), instruments=instruments, timeframe=Timeframe.M1)


def _close(bar: int) -> datetime:
    return from_us(_START_US + (bar + 1) * Timeframe.M1.us)


def _features(universe: Universe, bars: int, feature_set: FeatureSet = _SET) -> list[FeaturesComputed]:
    """The features of so many bars: the first ones are not known yet, and all others differ."""
    return [
        FeaturesComputed.of(
            universe,
            feature_set.id,
            feature_set.names,
            _close(bar),
            [
                [float("nan") if bar < 3 else bar / 3 + a / 7 + f / 11 for f in range(len(feature_set.names))]
                for a in range(len(universe.ids))
            ],
        )
        for bar in range(bars)
    ]


def _are(found: Sequence[Message], expected: Sequence[Message], what: str) -> None:
    """Raise `AssertionError` unless the messages are these, to the byte."""
    same = [message.encode() for message in found] == [message.encode() for message in expected]
    assert same, f"{what} are {len(found)} messages, other than the {len(expected)} that were published"
