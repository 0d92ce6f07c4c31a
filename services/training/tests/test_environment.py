from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3
from stable_baselines3.common.vec_env import VecMonitor

from tradeloop.common.errors import UserError
from tradeloop.common.evaluation.backtest import BacktestResult, backtest
from tradeloop.common.market import BAR_PRICES, Membership, Universe, from_us
from tradeloop.common.portfolio import Costs, RiskLimits
from tradeloop.common.strategy import RewardContext, log_return, reward
from tradeloop.common.strategy.rewards import RewardError
from tradeloop.training.adapters.environment import TradingEnv, TradingVecEnv

SCHEMES = ["target_position", "discrete", "portfolio_weights"]
BOOKS = 5


def vec_env(world: Any, *, books: int = BOOKS, episode_bars: int = 20, seed: int = 0, **changes: Any) -> TradingVecEnv:
    return TradingVecEnv(
        world.portfolio,
        world.strategy(**changes),
        world.bars,
        world.features,
        books=books,
        episode_bars=episode_bars,
        generator=np.random.default_rng(seed),
    )


def single_env(world: Any, *, episode_bars: int = 20, **changes: Any) -> TradingEnv:
    return TradingEnv(world.portfolio, world.strategy(**changes), world.bars, world.features, episode_bars=episode_bars)


def random_actions(env: TradingVecEnv, generator: np.random.Generator) -> NDArray[Any]:
    space, shape = env.action_space, env.action_space.shape or ()
    if isinstance(space, spaces.Box):
        return generator.uniform(-1, 1, (env.num_envs, *shape)).astype(np.float32)
    return generator.integers(3, size=(env.num_envs, *shape))


@pytest.mark.parametrize("instruments", [1, 2])
@pytest.mark.parametrize("actions", SCHEMES)
@pytest.mark.filterwarnings("ignore:.*A Box observation space (minimum|maximum) value is.*infinity")
@pytest.mark.filterwarnings("ignore:.*not able to test alternative render modes")
def test_the_single_environment_passes_the_checks_of_gymnasium_and_sb3(
    make_world: Any, actions: str, instruments: int
) -> None:
    world = make_world(instruments=instruments)
    check_env(single_env(world, actions=actions), skip_render_check=True)
    check_env_of_sb3(single_env(world, actions=actions))


class Replay:
    """Plays recorded actions, and records what it is shown."""

    def __init__(self, actions: NDArray[Any]) -> None:
        self.actions, self.seen = iter(actions), [np.empty(0)]

    def act(self, observation: NDArray[np.float32]) -> NDArray[np.float64]:
        self.seen.append(observation[0].copy())
        return np.asarray(next(self.actions), dtype=np.float64).reshape(1, -1)


@reward(version="1")
class ByInstrument:
    """Mixes what is per book with what is per instrument."""

    def __call__(self, c: RewardContext) -> NDArray[np.float64]:
        moved: NDArray[np.float64] = np.abs(c.position - c.position_prev).sum(axis=1)
        return np.log(c.equity / c.equity_prev) - 0.1 * moved + 0.5 * c.drawdown


def with_members(world: Any) -> Any:
    """The world with members in time: one leaves and comes back, and one is listed late and not known at first."""
    universe, bars = world.portfolio.universe, world.bars
    stays: dict[int, list[tuple[int, int | None]]] = {0: [(0, None)], 1: [(0, 40), (80, None)], 2: [(60, 110)]}
    members = {
        universe.ids[a]: tuple(
            Membership(start=from_us(bars.close_us[first]), end=None if last is None else from_us(bars.close_us[last]))
            for first, last in spans
        )
        for a, spans in stays.items()
    }
    universe = universe.model_copy(update={"members": members})
    columns = {name: getattr(bars, name).copy() for name in (*BAR_PRICES, "present")}
    columns["present"][:55, 2] = False
    for name in BAR_PRICES:
        columns[name][:55, 2] = np.nan
    features = world.features.copy()
    features[~universe.roster.inside(bars.close_us)] = np.nan
    features[:70, 2] = np.nan
    return replace(
        world,
        portfolio=world.portfolio.model_copy(update={"universe": universe}),
        bars=replace(bars, **columns),
        features=features,
    )


def with_events(world: Any) -> Any:
    """The world with halts of two instruments, and a delisting of the third for half of its price."""
    universe, bars = world.portfolio.universe, world.bars

    def one(kind: str, bar: int, **more: Any) -> dict[str, Any]:
        return {"time": from_us(bars.open_us[bar]), "kind": kind, **more}

    proceeds = float(bars.close[79, 2]) / 2.0
    events = {
        universe.ids[0]: [one("halt", 30), one("resume", 41), one("halt", 90), one("resume", 93)],
        universe.ids[1]: [one("halt", 100)],
        universe.ids[2]: [one("delisting", 80, proceeds=proceeds)],
    }
    universe = Universe.model_validate(universe.model_dump() | {"events": events})
    features = world.features.copy()
    features[~universe.roster.inside(bars.close_us)] = np.nan
    return replace(world, portfolio=world.portfolio.model_copy(update={"universe": universe}), features=features)


@pytest.mark.parametrize(
    ("instruments", "rewarded"),
    [*product((1, 3), ("growth", "curious", "apart", "by_instrument")), (3, "members change"), (3, "events")],
)
@pytest.mark.parametrize("actions", SCHEMES)
def test_both_environments_and_the_backtest_are_one_simulation(
    make_world: Any, curious: Any, actions: str, instruments: int, rewarded: str
) -> None:
    costs = Costs(slippage_bps=3.0)
    world = make_world(length=120, instruments=instruments, costs=costs, seed=instruments)
    if rewarded == "members change":
        world, rewarded = with_members(world), "curious"
    happens, closed = rewarded == "events", 0
    if happens:
        world, rewarded = with_events(world), "curious"
    rewards_of = {
        "growth": world.strategy().reward,
        "curious": curious,
        "apart": curious,
        "by_instrument": ByInstrument(),
    }
    changes: dict[str, Any] = {"actions": actions, "reward": rewards_of[rewarded]}
    if rewarded == "apart":  # of a feature that the policy does not see
        changes |= {"features": [log_return(2)], "reward_features": [log_return(1)]}
    steps = 120 - 4 - 3  # what remains after warm-up and window
    many = vec_env(world, episode_bars=steps, **changes)
    one = single_env(world, episode_bars=steps, **changes)
    generator = np.random.default_rng(1)
    played = np.array([random_actions(many, generator) for _ in range(steps)])
    seen = [many.reset().copy()]
    rewards, equity = [], []
    for action in played:
        observations, reward_, dones, infos = many.step(action)
        assert dones.all() == dones.any() == (len(seen) == steps)
        seen.append(np.array([i["terminal_observation"] for i in infos]) if dones.any() else observations.copy())
        rewards.append(reward_)
        equity.append(many.episodes.simulator.books.equity.copy())
    for n in range(BOOKS):
        replay = Replay(played[:, n])
        result = backtest(
            world.portfolio, world.strategy(**changes), world.bars, world.features, _then_still(replay, played[0, n])
        )
        same_as_backtest(result, replay, [o[n] for o in seen], [e[n] for e in equity])
        if happens:
            quantity = result.fill_quantity
            assert not quantity[30:41, 0].any()
            assert not quantity[100:, 1].any()
            assert quantity[80, 2] == -result.position[79, 2]
            closed += quantity[80, 2] != 0.0
            assert not quantity[81:, 2].any()
            assert {"trading_halted", "delisted"} <= result.denials.keys()
        observation, _ = one.reset(seed=n)
        np.testing.assert_array_equal(observation, seen[0][n])
        for t, action in enumerate(played[:, n]):
            observation, got, terminated, truncated, _ = one.step(action)
            np.testing.assert_array_equal(observation, seen[t + 1][n])
            assert np.float32(got) == rewards[t][n]
            assert one.episodes.simulator.books.equity[0] == result.equity[t + 7]
            last = t == steps - 1
            assert (terminated, truncated) == (False, last)
            told = 100.0 if last and rewards_of[rewarded] is curious else 0.0  # a backtest is never truncated
            assert got == (pytest.approx(result.rewards[t + 7] + told, rel=1e-12) if told else result.rewards[t + 7])
    assert bool(closed) == happens, "a book held what was delisted"


def _then_still(replay: Replay, action: Any) -> Any:
    """A backtest also asks at the very last bar, where an episode has ended."""
    replay.actions = iter([*replay.actions, np.zeros_like(action)])
    return replay


def same_as_backtest(result: BacktestResult, replay: Replay, seen: list[Any], equity: list[Any]) -> None:
    np.testing.assert_array_equal(replay.seen[1:], seen)
    # The last mark of the vectorised environment is gone: its books have started anew.
    np.testing.assert_array_equal(result.equity[7:-1], equity[:-1])


def test_a_vectorised_book_sees_its_reward_context(make_world: Any, curious: Any) -> None:
    world = make_world()
    env = vec_env(world, reward=curious, episode_bars=6)
    env.reset()
    generator = np.random.default_rng(0)
    for step in range(1, 14):
        rows = env.episodes.cursors.rows.copy()
        _, _, dones, _ = env.step(random_actions(env, generator))
        components = env.episodes.engine.components
        np.testing.assert_array_equal(components["feature"], world.features[rows, :, 0].sum(axis=1))
        np.testing.assert_array_equal(components["elapsed"], 1.0)
        np.testing.assert_array_equal(components["ended"], dones * 100.0)
        if step <= 6:
            assert dones.all() == dones.any() == (step == 6)
            np.testing.assert_array_equal(components["steps"], step / 8.0)
        assert (env.episodes.engine.state["steps"] == step % 6).all(), "a new episode forgets"


def test_a_halt_terminates_and_an_end_truncates(make_world: Any) -> None:
    world = make_world(limits=RiskLimits(max_drawdown=0.01))
    env = vec_env(world, episode_bars=30, books=64)
    env.reset()
    kinds = set()
    lengths = np.zeros(64, dtype=int)
    for step in range(60):
        halted_before = env.episodes.simulator.books.halt.copy()
        assert not halted_before.any(), "a book that halted has started anew"
        _, _, dones, infos = env.step(np.where(np.arange(64) % 2, 1.0, 0.001)[:, None])
        lengths += 1
        for n in range(64):
            assert dones[n] == ("terminal_observation" in infos[n]) == ("TimeLimit.truncated" in infos[n])
            if dones[n]:
                truncated = infos[n]["TimeLimit.truncated"]
                drawdown = infos[n]["terminal_observation"][-1]
                assert truncated == (drawdown < 0.01), step
                assert lengths[n] == 30 or not truncated
                kinds.add(truncated)
                lengths[n] = 0
    assert kinds == {True, False}


def test_an_ended_book_shows_its_new_episode_and_keeps_the_last_view_of_the_old(make_world: Any) -> None:
    world = make_world()
    env = vec_env(world, episode_bars=4, window=1)
    first = env.reset().copy()
    for _ in range(4):
        observations, _, dones, infos = env.step(np.ones((BOOKS, 1)))
    assert dones.all()
    account = -4
    for n in range(BOOKS):
        terminal = infos[n]["terminal_observation"]
        assert terminal[account:].any(), "the old book held a position"
        assert not observations[n, account:].any(), "the new one holds none"
        start = env.episodes.cursors.rows[n]
        np.testing.assert_array_equal(observations[n, :account], world.features[start].reshape(-1).astype(np.float32))
    kept = [info["terminal_observation"].copy() for info in infos]
    for _ in range(3):
        env.step(np.ones((BOOKS, 1)))
    np.testing.assert_array_equal([info["terminal_observation"] for info in infos], kept)
    assert first.shape == observations.shape == (BOOKS, 2 + 4)


def test_an_observation_lives_until_the_step_after_the_next(make_world: Any) -> None:
    """SB3 copies the observation that it acted on only after that action's step."""
    env = vec_env(make_world())
    previous = env.reset()
    for _ in range(30):
        kept = previous.copy()
        current, rewards, dones, _ = env.step(np.ones((BOOKS, 1)))
        np.testing.assert_array_equal(previous, kept)
        assert current.dtype == rewards.dtype == np.float32
        assert dones.dtype == np.bool_
        previous = current


def test_what_a_learner_does_to_rewards_dones_and_infos_changes_no_book(make_world: Any) -> None:
    clean, abused = vec_env(make_world(), episode_bars=5), vec_env(make_world(), episode_bars=5)
    for env in (clean, abused):
        env.reset()
    for _ in range(12):
        expected = clean.step(np.ones((BOOKS, 1)))
        observations, rewards, dones, infos = abused.step(np.ones((BOOKS, 1)))
        np.testing.assert_array_equal(observations, expected[0])
        np.testing.assert_array_equal(rewards, expected[1])
        np.testing.assert_array_equal(dones, expected[2])
        rewards += 100.0
        dones[:] = True
        infos.clear()


def test_the_seed_alone_decides_where_episodes_start(make_world: Any) -> None:
    def rows(env: TradingVecEnv) -> list[list[int]]:
        env.reset()
        walked = []
        for _ in range(25):
            env.step(np.ones((BOOKS, 1)))
            walked.append(env.episodes.cursors.rows.tolist())
        return walked

    world = make_world()
    assert rows(vec_env(world, seed=1)) == rows(vec_env(world, seed=1)) != rows(vec_env(world, seed=2))
    env = vec_env(world, seed=1)
    env.seed(7)
    seeded = rows(env)
    assert rows(env) != seeded, "a seed counts once"
    env.seed(7)
    assert rows(env) == seeded


def test_episodes_start_all_over_the_range(make_world: Any) -> None:
    world = make_world(length=60)
    env = vec_env(world, books=2000, episode_bars=20)
    env.reset()
    assert np.unique(env.episodes.cursors.rows).tolist() == list(range(6, 40))


def test_the_single_environment_starts_where_it_is_told(make_world: Any) -> None:
    env = single_env(make_world())
    env.reset(options={"start": 10})
    assert env.episodes.cursors.rows[0] == 10
    with pytest.raises(ValueError, match="no episode may start at row 3"):
        env.reset(options={"start": 3})
    starts = {int((env.reset(seed=s), env.episodes.cursors.rows[0])[1]) for s in range(20)}
    assert len(starts) > 5


def test_it_is_a_vec_env_as_sb3_knows_them(make_world: Any) -> None:
    env = vec_env(make_world(), episode_bars=6)
    assert env.get_attr("render_mode") == [None] * BOOKS
    assert env.get_attr("num_envs", [0, 2]) == [BOOKS] * 2
    assert env.env_is_wrapped(VecMonitor) == [False] * BOOKS  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="no environments of their own"):
        env.set_attr("render_mode", "human")
    with pytest.raises(AttributeError, match="no environments of their own"):
        env.env_method("step")
    monitored = VecMonitor(env)
    monitored.reset()
    for _ in range(6):
        *_, infos = monitored.step(np.ones((BOOKS, 1)))
    assert [info["episode"]["l"] for info in infos] == [6] * BOOKS
    monitored.close()


@reward(version="1")
class Broken:
    kind: str

    def __call__(self, c: RewardContext) -> NDArray[np.float64]:
        return c.equity * np.nan if self.kind == "nan" else c.equity[:, None]


@pytest.mark.parametrize(("kind", "message"), [("nan", "not finite"), ("shape", "shape")])
def test_a_broken_reward_is_named(make_world: Any, kind: str, message: str) -> None:
    env = vec_env(make_world(), reward=Broken(kind))
    env.reset()
    with pytest.raises(RewardError, match=f"Broken.*{message}"):
        env.step(np.ones((BOOKS, 1)))


def test_too_few_bars_are_refused(make_world: Any) -> None:
    with pytest.raises(UserError, match="window of 3 and episodes of 200 bars need 203 bars in a row"):
        vec_env(make_world(), episode_bars=200)


@reward(version="1")
class Divides:
    """By what is zero most of the time."""

    def __call__(self, c: RewardContext) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(c.fees / c.traded_notional)


def test_a_division_by_zero_is_an_arrays_own(make_world: Any) -> None:
    env = single_env(make_world(), reward=Divides())
    env.reset(seed=0)
    assert env.step(np.array([1.0]))[1] == pytest.approx(1e-4)
    assert env.step(np.array([1.0]))[1] == 0.0, "nothing traded"


@reward(version="1")
class BreaksLater:
    """Nothing is wrong with it until a book has fallen by a percent."""

    def __call__(self, c: RewardContext) -> NDArray[np.float64]:
        return np.where(c.drawdown > 0.01, np.nan, c.equity)


def test_a_reward_that_breaks_in_the_single_environment_is_named(make_world: Any) -> None:
    env = single_env(make_world(), reward=BreaksLater(), episode_bars=190)
    env.reset(seed=0)
    with pytest.raises(RewardError, match=r"BreaksLater.*not finite"):
        hold(env, 190)


def hold(env: TradingEnv, steps: int) -> None:
    for _ in range(steps):
        env.step(np.array([1.0]))
