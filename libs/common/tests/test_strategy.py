"""The plug-in: what a strategy refuses to be, how it is found, and what its check finds."""

from __future__ import annotations

import math
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest

from tradeloop.common.arrays import Floats
from tradeloop.common.contracts.strategy import strategy_checks
from tradeloop.common.contracts.strategy.features import features_ignore_another_future, features_restart
from tradeloop.common.contracts.strategy.trial import Trial
from tradeloop.common.errors import UserError
from tradeloop.common.features.feature import Span
from tradeloop.common.portfolio import RiskLimits
from tradeloop.common.strategy import (
    Discrete,
    Feature,
    PortfolioWeights,
    RewardContext,
    Strategy,
    StrategyError,
    TargetPosition,
    cross_mean,
    cross_rank,
    day_of_week,
    load,
    log_return,
    of,
    on,
    relative,
    reward,
    scalar_reward,
    talib,
    time_of_day,
    vectorised,
    volatility,
    windowed,
)
from tradeloop.common.strategy import installed as plug_in
from tradeloop.common.testing import check_strategy


@reward(version="1")
class Growth:
    """Log return of equity."""

    def __call__(self, c: RewardContext) -> Floats:
        return np.log(c.equity / c.equity_prev)


@reward(version="1")
class Pending:
    """Growth, less a fine for each bar of a losing streak: a reward that remembers."""

    fine: float = 1e-3
    initial_state: ClassVar[Mapping[str, float]] = {"streak": 0.0}

    def __call__(self, c: RewardContext) -> dict[str, Floats]:
        streak = c.state["streak"]
        streak += 1.0
        streak[c.equity >= c.equity_prev] = 0.0
        return {"growth": np.log(c.equity / c.equity_prev), "streak": -self.fine * streak}


@reward(version="1")
class RollingSharpe:
    """The Sharpe ratio of the last bars: a reward that remembers rows."""

    bars: int = 20

    @property
    def initial_state(self) -> Mapping[str, Floats]:
        return {"returns": np.zeros(self.bars)}

    def __call__(self, c: RewardContext) -> Floats:
        returns = c.state["returns"]
        returns[:, :-1] = returns[:, 1:]
        returns[:, -1] = c.equity / c.equity_prev - 1.0
        return np.asarray(returns.mean(axis=1) / (returns.std(axis=1) + 1e-4))


@scalar_reward(version="1")
def gain(previous: Mapping[str, float], current: Mapping[str, float], action: float) -> float:
    return current["equity"] / previous["equity"] - 1.0


@scalar_reward(version="1")
def eager(previous: Mapping[str, float], current: Mapping[str, float], action: float) -> float:
    return action * (current["price"] / previous["price"] - 1.0)


@scalar_reward(version="1")
def cautious(previous: Mapping[str, float], current: Mapping[str, float], action: float) -> float:
    return math.log(1.0 - current["drawdown"])


def known_below_1000(close: Floats) -> float:
    return float(close[-1] / close[0]) if close[-1] < 1000.0 else math.nan


def spread(close: Floats, low: Floats) -> float:
    return float(close[-1] / low.min() - 1.0)


def gap(time: Floats, scale: float) -> float:
    """The distance of two bars in time."""
    return float((time[-1] - time[0]) / scale)


def strategy(
    reward: Any = Growth(),  # noqa: B008  it is frozen
    features: Any = (log_return(1),),  # noqa: B008
    actions: Any = "target_position",
    window: Any = 4,
    reward_features: Any = (),
) -> Strategy:
    return Strategy(
        name="mine",
        features=features,
        reward=reward,
        window=window,
        actions=actions,
        reward_features=reward_features,
    )


# --- construction ----------------------------------------------------------------------------------


def test_a_strategy_says_four_things() -> None:
    mine = strategy(features=[log_return(1), talib("RSI", timeperiod=14)], actions="discrete", window=8)
    assert mine.feature_set.names == ("log_return_1", "rsi_14")
    assert mine.actions == Discrete()
    assert mine.observation_size(instruments=2) == 8 * 2 * 2 + 3 * 2 + 1
    assert mine.reward_id.startswith("rw_")
    assert (mine.algorithm, mine.parameters) == ("PPO", {})
    assert mine == strategy(features=mine.features, actions=Discrete(), window=8)
    assert pickle.loads(pickle.dumps(mine)) == mine


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Strategy("My Edge", [log_return(1)], Growth()), "^strategy 'My Edge': a name is lower-case letters"),
        (lambda: strategy(features=[]), "strategy mine has no features: a policy that sees nothing"),
        (lambda: strategy(features=["RSI"]), "^strategy mine: 'RSI' is no feature; write e.g. talib"),
        (
            lambda: strategy(features=[time_of_day()]),
            r"features is a list of 2; put a star .*, as in \*time_of_day\(\)$",
        ),
        (lambda: strategy(features=[log_return(1), log_return(1)]), "log_return_1 is listed twice"),
        (lambda: strategy(window=0), "^strategy mine: the window is 0; it must be a whole number"),
        (lambda: strategy(window=2.5), "the window is 2.5; it must be a whole number"),
        (lambda: strategy(actions="target"), "no action scheme 'target'; there are target_position, discrete"),
        (lambda: strategy(actions=TargetPosition), r"TargetPosition is a class; write TargetPosition\(\)$"),
        (lambda: strategy(reward=Growth), r"Growth is a class; write Growth\(\)$"),
        (lambda: strategy(reward=0.5), "^strategy mine: its reward is a float; make one with @reward$"),
        (lambda: strategy(reward=abs), "reward abs has no version: decorate its class with @reward"),
    ],
)
def test_what_is_wrong_is_said_at_once(make: Callable[[], Strategy], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


# --- loading ---------------------------------------------------------------------------------------


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Writes a module and makes its names the installed entry points."""
    monkeypatch.syspath_prepend(tmp_path)
    modules: list[str] = []

    def write(source: str, **points: str) -> None:
        module = f"installed_{len(modules)}_{tmp_path.name.replace('-', '_')}"
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(source)
        found = EntryPoints(
            EntryPoint(name.rstrip("_"), value.replace("module", module), plug_in.GROUP)
            for name, value in points.items()
        )
        monkeypatch.setattr(plug_in, "entry_points", lambda **chosen: found.select(**chosen))

    yield write
    for module in modules:
        sys.modules.pop(module, None)


GOOD = """
from tradeloop.common.strategy import *
@reward(version="1")
class R:
    def __call__(self, c):
        return c.equity - c.equity_prev
mine = Strategy("mine", [log_return(1)], R())
"""


def test_an_installed_strategy_is_found(install: Callable[..., None]) -> None:
    install(GOOD, mine="module:mine")
    assert [*plug_in.installed()] == ["mine"]
    assert load("mine").name == "mine"


@pytest.mark.parametrize(
    ("source", "points", "message"),
    [
        (GOOD, {"mine": "module:mine"}, r"^strategy mime is not installed; did you mean mine\?$"),
        (GOOD, {"other": "module:mine"}, "^strategy mime is not installed; installed are: other$"),
        (GOOD, {}, "^strategy mime is not installed; installed are: none$"),
        (GOOD, {"mime": "module:mine"}, "^strategy mime: .*:mine calls itself mine; give both the same name$"),
        (GOOD, {"mime": "module:yours"}, "cannot be loaded: AttributeError: .* has no attribute 'yours'"),
        (GOOD, {"mime": "module:R"}, "is a type, not a Strategy$"),
        ("mime = 3", {"mime": "module:mime"}, "is a int, not a Strategy$"),
        ("import nothing_like_it", {"mime": "module:x"}, "cannot be loaded: ModuleNotFoundError: .*nothing_like_it"),
        ("\n\nx = 1 /\\\n 0", {"mime": "module:x"}, r"cannot be loaded: ZeroDivisionError: .*_\d\.py:3\)$"),
        ("x = (", {"mime": "module:x"}, "cannot be loaded: SyntaxError: "),
        (GOOD.replace("[log", "[talib('RSJ'), log"), {"mime": "module:x"}, r"no function 'RSJ': did you mean RSI\?"),
        (
            GOOD,
            {"mime": "module:mine", "mime_": "module:R"},
            "is in several packages, .*:R and .*:mine; uninstall all but one",
        ),
    ],
)
def test_what_cannot_be_loaded_is_one_line(
    install: Callable[..., None], source: str, points: dict[str, str], message: str
) -> None:
    install(source, **points)
    with pytest.raises(StrategyError, match=message) as raised:
        load("mime")
    assert "\n" not in str(raised.value)


# --- the check: strategies that keep their promises ------------------------------------------------


@pytest.mark.parametrize(
    "mine",
    [
        strategy(),
        strategy(reward=Pending(), actions="discrete"),
        strategy(reward=RollingSharpe(bars=20)),
        strategy(reward=gain, actions="portfolio_weights"),
        strategy(
            features=[on("1d", relative(talib("EMA", timeperiod=20))), windowed("spread", spread, 8, ("close", "low"))]
        ),
        strategy(features=[talib("MFI", timeperiod=14), on("1m", log_return(1))][:1], actions=PortfolioWeights(0.1)),
        strategy(features=[*time_of_day("Asia/Tokyo"), *day_of_week(), windowed("gap", gap, 2, ("time",), scale=3600)]),
        strategy(
            features=[
                of("BTC", log_return(1)),
                of("binance:BTC", log_return(2)),
                of("ETH", on("4h", log_return(1))),
                of(4, log_return(1)),
                cross_mean(log_return(1)),
                cross_rank(windowed("spread", spread, 8, ("close", "low"))),
            ]
        ),
    ],
    ids=["plain", "state", "rows of state", "scalar", "higher timeframe", "volume", "time", "other instruments"],
)
def test_a_good_strategy_passes(mine: Strategy) -> None:
    promises = list(strategy_checks(mine))
    assert len(set(promises)) == len(promises) == 12
    assert list(strategy_checks(mine)) == promises
    assert check_strategy(mine) == ()


def test_a_reward_is_tried_on_all_that_happens_to_books() -> None:
    seen: list[RewardContext] = []

    def look(c: RewardContext) -> Floats:
        seen.append(c)
        return c.equity - c.equity_prev

    check_strategy(rewarding(look))
    for count in (1, 2):
        contexts = [c for c in seen if c.position.shape == (8, count)]
        for happened in ("terminated", "truncated", "funding", "slippage", "drawdown", "unrealised", "holding_bars"):
            assert any(getattr(c, happened).any() for c in contexts), f"{happened} with {count} instruments"
        assert any((c.turnover == 0.0).any() for c in contexts)
        assert any((c.position < 0.0).any() and (c.position > 0.0).any() for c in contexts)
        assert any((c.features["log_return_1"] != 0.0).all() for c in contexts)
    assert {len(c.equity) for c in seen} == {1, 8}


def test_leverage_is_checked_against_the_portfolio_it_is_for() -> None:
    levered = strategy(actions=TargetPosition(leverage=3.0))
    with pytest.raises(StrategyError, match=r"asks for 3 times the equity, and max_position of its portfolio is 1\.05"):
        check_strategy(levered)
    check_strategy(levered, RiskLimits(max_position=3.0, max_leverage=3.0))


def warned(mine: Strategy) -> str:
    """The one warning about a strategy."""
    [warning] = check_strategy(mine)
    assert warning.startswith("strategy mine: ")
    assert "\n" not in warning
    return warning


def dated(time: Floats) -> float:
    return float(time[-1] / 86_400.0)


@pytest.mark.parametrize(
    "feature",
    [
        talib("SMA", timeperiod=20),
        talib("ATR"),
        talib("MACD", output="macdhist"),
        talib("VAR"),
        talib("LN"),
        of("ETH", on("4h", talib("EMA"))),
        cross_mean(talib("EMA")),
    ],
    ids=lambda feature: str(feature.name),
)
def test_a_feature_that_follows_the_price_is_a_warning(feature: Feature) -> None:
    mine = strategy(features=[log_return(1), feature, talib("RSI")])
    message = f"features that follow the price: {feature.name} (with all prices 8 times as high, {feature.name} goes"
    assert message in warned(mine)


def test_a_feature_that_is_lost_at_other_prices_is_a_warning() -> None:
    message = warned(strategy(features=[log_return(1), windowed("low", known_below_1000, 2)]))
    assert "features that follow the price: low (with all prices 8 times as high, low goes from 1" in message


def test_a_feature_that_follows_the_date_is_a_warning() -> None:
    mine = strategy(features=[*time_of_day(), *day_of_week("America/New_York"), windowed("dated", dated, 1, ("time",))])
    assert "features that follow the date: dated (a year later, dated goes from" in warned(mine)


def test_a_reward_of_the_proposed_action_is_a_warning() -> None:
    message = "its reward depends on the action, which is what the policy proposed and not what was traded"
    assert message in warned(rewarding(lambda c: 0.01 * c.action[:, 0] * (c.price[:, 0] / c.price_prev[:, 0] - 1.0)))
    discrete = strategy(reward=eager, actions="discrete")
    assert message in warned(discrete)


def test_a_reward_that_ruin_breaks_is_a_warning() -> None:
    message = warned(rewarding(lambda c: np.log(1.0 - c.drawdown)))
    assert "a book loses more than it has: strategy mine is wrong: reward Made returned" in message
    assert "c.equity is then 1e-06 times the capital, and c.drawdown above 1" in message
    assert "a book loses more than it has: strategy mine fails in its reward: ValueError" in warned(
        strategy(reward=cautious)
    )


def test_a_strategy_is_tried_with_the_instruments_that_its_features_look_at() -> None:
    def ids(*features: Feature) -> tuple[str, ...]:
        return Trial(strategy(features=features), RiskLimits()).ids

    assert ids(log_return(1)) == ids(cross_rank(log_return(1))) == ids(of(1, log_return(1))) == ("check:A", "check:B")
    assert ids(of("BTC", log_return(1)), of("x:BTC", log_return(2))) == ("check:A", "x:BTC")
    assert ids(of(3, log_return(1)), of("B", log_return(1)), of("A", log_return(1)))[:2] == ("check:A", "check:B")
    assert len(set(ids(of(3, log_return(1)), of("B1", log_return(1))))) == 4


# --- the check: strategies that break them ---------------------------------------------------------


def refused(mine: Strategy) -> str:
    with pytest.raises(StrategyError) as raised:
        check_strategy(mine)
    message = str(raised.value)
    assert message.startswith("strategy mine ")
    assert "\n" not in message
    return message


def rewarding(function: Callable[[RewardContext], Any], **members: Any) -> Strategy:
    """A strategy whose reward is computed by `function`."""
    made = type("Made", (), {"__call__": lambda self, c: function(c), "__module__": __name__, **members})
    # Where pickle looks for it.
    globals()["Made"] = reward(version="1")(made)
    return strategy(reward=globals()["Made"]())


SEEN: list[float] = []
CLOCK = iter(range(10**9))


def _remembers_by_itself(c: RewardContext) -> Floats:
    SEEN.extend(c.equity.tolist())
    return c.equity * len(SEEN)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda c: c.nothing,
            r"fails in its reward \(A = 1\): AttributeError: .*nothing.* \(tests/test_strategy\.py:\d+\)$",
        ),
        (lambda c: c.state["x"], "fails in its reward.*: KeyError: 'x'"),
        (lambda c: np.log(c.equity - c.equity_prev), "is wrong: reward Made returned a value that is not finite"),
        (lambda c: c.traded_notional / c.turnover, "is wrong: reward Made returned a value that is not finite"),
        (lambda c: c.position, r"is wrong: reward Made returned float64 of shape \(8, 1\)"),
        (
            lambda c: c.position.squeeze(1)[:, 0] if c.position.shape[1] > 1 else c.equity,
            r"fails in its reward \(A = 2\): ",
        ),
        (lambda c: float(c.equity.mean()), "is wrong: reward Made returned float as reward"),
        (lambda c: c.equity - c.equity.mean(), "gives a book something else alone than among 8"),
        (lambda c: np.cumsum(c.equity), "gives a book something else alone than among 8"),
        (lambda c: c.equity * np.random.random(), "differs between two runs over the same context"),  # noqa: NPY002
        (lambda c: c.equity * next(CLOCK), "differs between two runs over the same context"),
        (_remembers_by_itself, "differs between two runs over the same context"),
        (lambda c: np.divide(c.equity, 2.0, out=c.equity), r"writes into c\.equity: let it make an array of its own"),
        (
            lambda c: np.multiply(c.features["log_return_1"], 2, out=c.features["log_return_1"])[:, 0],
            "c.features.'log_r",
        ),
        (
            lambda c: {"a": c.equity} | ({"b": c.equity} if c.terminated.any() else {}),
            r"components change from \['a'\] to \['a', 'b'\]: return the same ones always",
        ),
    ],
)
def test_a_bad_reward_is_refused(function: Callable[[RewardContext], Any], message: str) -> None:
    assert re.search(message, refused(rewarding(function)))


def test_a_state_that_is_not_finite_is_refused() -> None:
    def remembers(c: RewardContext) -> Floats:
        c.state["low"][:] = np.minimum(c.state["low"], c.equity)
        return c.equity - c.equity_prev

    mine = rewarding(remembers, initial_state={"low": math.inf})
    assert "whose c.state['low'] is not finite" in refused(mine)


def test_a_row_that_is_not_finite_is_refused() -> None:
    mine = rewarding(lambda c: c.equity - c.equity_prev, initial_state={"low": (0.0, math.nan)})
    assert "whose c.state['low'] is not finite" in refused(mine)


def test_an_initial_state_that_is_none_is_refused() -> None:
    mine = rewarding(lambda c: c.equity - c.equity_prev, initial_state={"low": ()})
    assert "is wrong: reward Made declares () as the initial state low: give what one book remembers" in refused(mine)


def _sharpe_over_axis_0(c: RewardContext) -> Floats:
    """Twenty memories of one number, reduced over the axis that they are stacked on."""
    changes = np.stack(list(c.state.values()))
    for one, other in zip(changes, [*changes[1:], c.equity / c.equity_prev - 1.0], strict=True):
        one[:] = other
    for name, one in zip(c.state, changes, strict=True):
        c.state[name][:] = one
    return np.asarray(changes.mean(axis=0) / (changes.std(axis=0) + 1e-4))


def test_reductions_over_axis_0_are_refused_with_the_reason() -> None:
    mine = rewarding(_sharpe_over_axis_0, initial_state={f"return_{n}": 0.0 for n in range(20)})
    message = refused(mine)
    assert "something else alone than among 8" in message
    assert "over axis=0 NumPy adds in another order" in message
    assert "rows of k numbers a book, of shape (N, k)" in message


def test_a_reward_that_cannot_travel_is_refused() -> None:
    @reward(version="1")
    class Local:
        def __call__(self, c: RewardContext) -> Floats:
            return c.equity

    message = refused(strategy(reward=Local()))
    assert "fails in pickling, so define what it uses at the top level of a module" in message


@dataclass(frozen=True, kw_only=True)
class Centred(Feature):
    """Close less the mean of all closes, the future's among them."""

    def batch(self, columns: Floats, spans: Sequence[Span]) -> Floats:
        centred: Floats = columns[3] - columns[3].mean()
        return centred

    def state(self) -> Any:
        return log_return(1).state()


@dataclass(frozen=True, kw_only=True)
class Shifted(Feature):
    """The return of the next bar."""

    def batch(self, columns: Floats, spans: Sequence[Span]) -> Floats:
        returns = log_return(1).batch(columns, spans)
        return np.append(returns[1:], returns[-1:])

    def state(self) -> Any:
        return log_return(1).state()


@dataclass(frozen=True, kw_only=True)
class Peeking(Feature):
    """The higher close of two bars, the next one among them: mostly it says little about the next return."""

    def batch(self, columns: Floats, spans: Sequence[Span]) -> Floats:
        close = np.append(columns[3], columns[3, -1:])
        highest: Floats = np.maximum(close[:-1], close[1:])
        return highest

    def state(self) -> Any:
        return log_return(1).state()


@dataclass(frozen=True, kw_only=True)
class Short(Feature):
    """It says that it looks back four bars, and looks back a hundred."""

    anchored: bool = False

    def batch(self, columns: Floats, spans: Sequence[Span]) -> Floats:
        return log_return(100).batch(columns, spans)

    def state(self) -> Any:
        return log_return(100).state()


@dataclass(frozen=True, kw_only=True)
class Forgetful(Feature):
    """Its state is another feature than its batch."""

    def batch(self, columns: Floats, spans: Sequence[Span]) -> Floats:
        return log_return(2).batch(columns, spans)

    def state(self) -> Any:
        return log_return(1).state()


def z_score(close: Floats) -> float:
    return float((close[-1] - close.mean()) / close.std())


def reciprocal(volume: Floats) -> float:
    return float(1.0 / volume[-1])


def explodes(close: Floats) -> float:
    raise LookupError("no such thing")


def huge(close: Floats) -> float:
    return float(close[-1]) * 1e40


def noise(close: Floats) -> float:
    return float(np.random.random())  # noqa: NPY002


def mixed(close: Floats) -> Floats:
    """Measured by all windows that it gets: the future's among them."""
    return np.asarray(close[-1] / close.mean())


def nothing(close: Floats) -> float:
    return math.nan


def custom(kind: type[Feature], definition: str = "mine") -> Feature:
    return kind(name="custom", definition=definition, history=4, inputs=("close",))


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (
            custom(Centred),
            r"looks ahead: feature custom of check:A at bar 0 changes when the bars from 1199 on",
        ),
        (
            custom(Shifted),
            r"feature custom goes with the return of the next bar \(rank correlation 1\.00 over .*shift",
        ),
        (
            custom(Peeking),
            r"looks ahead: feature custom of check:A at bar \d+ changes when the bars from 1199 on",
        ),
        (
            custom(Forgetful),
            r"than it trades on: bar by bar, feature custom of check:A at bar 600 differs",
        ),
        (
            custom(Short),
            r"than it trades on: bar by bar, feature custom of check:A at bar \d+ differs",
        ),
        (
            vectorised("mixed", mixed, 5),
            r"looks ahead: feature mixed of check:A at bar \d+ changes when the bars from \d+ on are taken",
        ),
        (custom(Forgetful, definition=f"<function at 0x{id(Growth):x}>"), "feature custom holds an address in memory"),
        (windowed("z", z_score, 20), "loses its value: z is NaN at bar .* guard it where the price stands still"),
        (
            windowed("r", reciprocal, 2, ("volume",)),
            "is wrong: feature r of check:A is infinite|feature r: ZeroDivision",
        ),
        (
            windowed("explodes", explodes, 2),
            r"fails in feature explodes: LookupError: .* \(tests/test_strategy\.py:\d+\)$",
        ),
        (windowed("huge", huge, 2), "observes what no float32 can hold: scale huge down"),
        (windowed("noise", noise, 2), r"looks ahead: feature noise of check:A at bar \d+ changes"),
        (windowed("nothing", nothing, 2), "has a feature without values: nothing gives none in"),
        (on("1s", log_return(1)), "has features on 1s, the shortest timeframe"),
    ],
)
def test_a_bad_feature_is_refused(feature: Feature, message: str) -> None:
    assert re.search(message, refused(strategy(features=[log_return(1), feature])))


@pytest.mark.parametrize("kind", [Centred, Peeking, Shifted])
def test_another_future_finds_what_looks_ahead_too(kind: type[Feature]) -> None:
    trial = Trial(strategy(features=[custom(kind)]), RiskLimits())
    with pytest.raises(StrategyError, match=r"feature custom of check:A at bar \d+ changes when .* are others"):
        features_ignore_another_future(trial)


def test_features_of_further_columns_pass_the_check() -> None:
    inputs = ("sentiment",)
    features = [talib("EMA", timeperiod=5, inputs=inputs), on("1h", talib("SMA", timeperiod=2, inputs=inputs))]
    assert check_strategy(Strategy("further", features, Growth())) == ()


def test_a_history_that_is_too_short_is_found_after_a_restart() -> None:
    trial = Trial(strategy(features=[custom(Short)]), RiskLimits())
    with pytest.raises(StrategyError, match=r"after a restart: feature custom of check:A at bar \d+ .* at bar \d+"):
        features_restart(trial)


@reward(version="1")
class Calm:
    """Growth, less a fine for trading where it is loud."""

    feature: str = "volatility_close_5"

    def __call__(self, c: RewardContext) -> Floats:
        assert c.features.get("nothing") is None
        assert "nothing" not in c.features
        return np.asarray(np.log(c.equity / c.equity_prev) - c.turnover * c.features[self.feature].mean(axis=1))


def test_features_of_the_reward_alone_are_no_part_of_the_observation() -> None:
    mine = strategy(reward=Calm(), reward_features=[volatility(5)])
    assert mine.feature_set.names == (*(f.name for f in mine.features), "volatility_close_5")
    assert mine.observation_size(2) == strategy().observation_size(2)
    assert mine.feature_set.id != strategy().feature_set.id
    assert strategy(reward_features=[]).feature_set.id == strategy().feature_set.id
    assert check_strategy(mine) == ()
    assert check_strategy(pickle.loads(pickle.dumps(mine))) == ()


def test_a_reward_that_asks_for_what_is_not_there_is_told_what_is() -> None:
    names = ", ".join(strategy().feature_set.names)
    message = refused(strategy(reward=Calm()))
    assert f"reward Calm asks for the feature 'volatility_close_5', and it sees {names}: name it in the" in message
    message = refused(strategy(reward=Calm("volatility_close_4"), reward_features=[volatility(5)]))
    assert f"it sees {names}, volatility_close_5: is it volatility_close_5?" in message


@pytest.mark.parametrize(
    ("features", "message"),
    [(["RSI"], "'RSI' is no feature"), ([log_return(1)], "log_return_1 is listed twice")],
)
def test_features_of_the_reward_are_checked_as_others(features: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        strategy(features=[log_return(1)], reward_features=features)


def test_features_have_no_role_in_the_simulator() -> None:
    """A strategy does not choose what its fills cost."""
    with pytest.raises(StrategyError, match=r"the simulator reads no features: .*slippage_bps") as caught:
        Strategy("s", [log_return(1)], Calm(), market_features=[volatility(5)])
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class Custom:
    """An action scheme of an author's own, that can be broken in one place."""

    function: str = "fine"
    kind: Literal["box", "discrete"] = "box"
    choices: int = 0
    relative_band: float = 0.0
    name: str = "custom"

    def band(self, instruments: int) -> float:
        return self.relative_band / instruments

    def size(self, instruments: int) -> int:
        return instruments

    def weights(self, action: Floats) -> Floats:
        found: Floats = WEIGHTS[self.function](action)
        return found


WEIGHTS: dict[str, Callable[[Floats], Any]] = {
    "fine": lambda action: np.clip(action, -1, 1) / action.shape[1],
    "unbounded": lambda action: action,
    "not finite": lambda action: np.clip(action, -1, 1) / np.abs(action).clip(0, 1),
    "too wide": lambda action: np.repeat(action, 2, axis=1),
    "single precision": lambda action: np.clip(action, -1, 1).astype(np.float32),
    "ranked": lambda action: np.argsort(action, axis=0) / (len(action) * action.shape[1]),
    "in place": lambda action: np.clip(action, -1, 1, out=action) / action.shape[1],
    "raises": lambda action: action[:, 5],
}


def test_an_action_scheme_of_ones_own_passes() -> None:
    check_strategy(strategy(actions=Custom()))


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (Custom("unbounded"), r"asks for 1e\+09 times the equity, and max_position of its portfolio is 1.05"),
        (Custom("not finite"), r"answers \[0\.0\] with a weight that is not finite"),
        (Custom("too wide"), r"gives float64 of shape \(70, 2\): let it be float64 of shape \(70, 1\)"),
        (Custom("single precision"), r"gives float32 of shape \(70, 1\)"),
        (Custom("ranked"), "gives a book other weights alone than among others"),
        (Custom("in place"), "writes into the actions"),
        (Custom("raises"), "fails in action scheme custom: IndexError"),
        (
            Custom(kind="discrete", choices=1),
            "of kind 'discrete': let it be box, or discrete with at least two choices",
        ),
        (Custom(relative_band=-1.0), "with a no-trade band of -1.0: let it be 0 or more"),
        (
            Custom(relative_band=1.1),
            "no-trade band of 1.1 is wider than any of its weights with 1 instrument, 1 at most, so nothing would ever",
        ),
    ],
)
def test_a_bad_action_scheme_is_refused(scheme: Custom, message: str) -> None:
    assert re.search(message, refused(strategy(actions=scheme)))


@dataclass(frozen=True)
class Absolute(Custom):
    """A band in weights, which is too wide for the weights of many instruments."""

    def band(self, instruments: int) -> float:
        return 0.4


def test_a_band_that_is_too_wide_for_more_instruments_is_refused() -> None:
    message = refused(strategy(actions=Absolute()))
    assert "no-trade band of 0.4 is wider than any of its weights with 3 instruments, 0.333 at most" in message


@pytest.mark.parametrize(
    "actions", [TargetPosition(no_trade_band=1.01), Discrete(no_trade_band=1.01), PortfolioWeights(no_trade_band=0.99)]
)
def test_a_band_that_no_weight_can_cross_is_refused(actions: Any) -> None:
    assert "nothing would ever be traded: make it narrower" in refused(strategy(actions=actions))


@pytest.mark.parametrize("actions", [TargetPosition(no_trade_band=1.0), Discrete(no_trade_band=1.0)])
def test_a_band_that_the_largest_weight_reaches_is_none_to_refuse(actions: Any) -> None:
    check_strategy(strategy(actions=actions))


@dataclass(frozen=True)
class Former:
    """An action scheme as it was written when bands were shares of equity."""

    name: str = "former"
    kind: str = "box"
    choices: int = 0
    no_trade_band: float = 0.05

    def size(self, instruments: int) -> int:
        return instruments

    def weights(self, action: Floats) -> Floats:
        return WEIGHTS["fine"](action)  # type: ignore[no-any-return]


def test_a_former_scheme_is_told_what_took_the_place_of_its_band() -> None:
    assert "without band(instruments), which took the place of no_trade_band" in refused(strategy(actions=Former()))
