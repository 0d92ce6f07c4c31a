"""Members of a universe in time: what they mean, the files that say them, and what survivors alone would show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tradeloop.common.arrays import Bools, Float32s, Floats
from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.clock import ManualClock
from tradeloop.common.errors import UserError
from tradeloop.common.evaluation.backtest import BacktestResult, backtest
from tradeloop.common.evaluation.baselines import baselines
from tradeloop.common.features import FeatureSet, FeatureStream, basis_in_steps, shown
from tradeloop.common.market import (
    BarArrays,
    Instrument,
    Members,
    Membership,
    Series,
    Timeframe,
    Universe,
    align,
    from_us,
    to_us,
)
from tradeloop.common.market.largest import Every, Measure, change_dates, largest
from tradeloop.common.market.member_file import read_members
from tradeloop.common.portfolio import Costs, Portfolio, RiskLimits, read_portfolio
from tradeloop.common.strategy import (
    Strategy,
    TargetPosition,
    cross_demean,
    cross_mean,
    cross_rank,
    cross_zscore,
    log_return,
    of,
    reward,
)
from tradeloop.common.strategy.rewards import RewardContext

DAY = Timeframe.D1
T0 = datetime(2024, 1, 1, tzinfo=UTC)


def day(number: int) -> datetime:
    return T0 + timedelta(days=number)


def universe(ids: Sequence[str], members: Members) -> Universe:
    instruments = tuple(Instrument(id=one, taker_bps=0.0) for one in ids)
    return Universe(name="u", instruments=instruments, timeframe=DAY, members=dict(members))


def bars_of(closes: Floats, listed: Sequence[tuple[int, int]]) -> BarArrays:
    """Days that open where the one before closed; each instrument has bars from one day to another."""
    series: list[Series] = []
    opens = np.vstack([closes[:1], closes[:-1]])
    for a, (first, last) in enumerate(listed):
        rows = slice(first, last)
        series.append(
            {
                "open_us": np.array([to_us(day(t)) for t in range(len(closes))])[rows],
                "open": opens[rows, a],
                "high": np.maximum(opens, closes)[rows, a],
                "low": np.minimum(opens, closes)[rows, a],
                "close": closes[rows, a],
            }
        )
    return align([f"x:{letter}" for letter in "ABCDEFGH"[: len(listed)]], DAY, series)


# --- what a membership means --------------------------------------------------------------------------------------


stays = st.lists(st.integers(0, 60), min_size=0, max_size=8, unique=True).map(sorted)


@given(st.lists(stays, min_size=1, max_size=4), st.booleans())
def test_a_roster_is_what_plain_python_says(edges: list[list[int]], last_is_open: bool) -> None:
    ids = [f"x:{a}" for a in range(len(edges))]
    spans = [
        [
            (times[i], times[i + 1] if i + 1 < len(times) else None)
            for i in range(0, len(times), 2)
            if last_is_open or i + 1 < len(times)
        ]
        for times in edges
    ]
    members = {
        name: tuple(Membership(start=day(first), end=None if last is None else day(last)) for first, last in of_it)
        for name, of_it in zip(ids, spans, strict=True)
        if of_it
    }
    roster = universe(ids, members).roster
    for number in range(-1, 62):
        belongs = [
            not members or any(first <= number and (last is None or number < last) for first, last in of_it)
            for of_it in spans
        ]
        time_us = to_us(day(number))
        assert roster.outside(time_us) == tuple(name for name, inside in zip(ids, belongs, strict=True) if not inside)
        assert roster.inside(np.array([time_us]))[0].tolist() == belongs


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"x:Z": [Membership(start=T0)]}, "x:Z, which is no instrument"),
        ({"x:A": [Membership(start=T0), Membership(start=day(5))]}, "x:A is a member from .* for ever, and from"),
        ({"x:A": [Membership(start=T0, end=day(6)), Membership(start=day(5))]}, "do not overlap"),
        ({"x:A": [Membership(start=day(5), end=day(6)), Membership(start=T0, end=day(1))]}, "follow each other"),
    ],
)
def test_a_universe_refuses_what_cannot_be(members: Members, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        universe(["x:A", "x:B"], members)


def test_a_membership_does_not_end_before_it_starts() -> None:
    with pytest.raises(ValidationError, match=r"ends .* before it starts"):
        Membership(start=day(1), end=day(1))


def test_a_universe_without_members_reads_and_writes_as_before() -> None:
    always = universe(["x:A"], {})
    assert "members" not in always.model_dump_json()
    assert always.members_id == ""
    some = universe(["x:A"], {"x:A": (Membership(start=T0),)})
    assert Universe.model_validate_json(some.model_dump_json()) == some
    assert some.members_id != universe(["x:A"], {"x:A": (Membership(start=day(1)),)}).members_id


# --- files --------------------------------------------------------------------------------------------------------


def file(folder: Path, *rows: str, head: str = "instrument,from,to,zone") -> Path:
    path = folder / "members.csv"
    path.write_text("\n".join([head, *rows, ""]))
    return path


def test_a_file_says_who_belongs_and_when(tmp_path: Path) -> None:
    found = read_members(
        file(
            tmp_path,
            "ACME,2024-03-01,2024-06-21,America/New_York",
            "ACME,2022-01-03,2023-01-02,",
            "EVIL,2020-01-01T09:30:00-05:00,,",
        )
    )
    assert found.zones == ("America/New_York", "UTC")
    assert found.members == {
        "ACME": (
            Membership(start=datetime(2022, 1, 3, tzinfo=UTC), end=datetime(2023, 1, 2, tzinfo=UTC)),
            Membership(start=datetime(2024, 3, 1, 5, tzinfo=UTC), end=datetime(2024, 6, 21, 4, tzinfo=UTC)),
        ),
        "EVIL": (Membership(start=datetime(2020, 1, 1, 14, 30, tzinfo=UTC)),),
    }


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["A,2024-03-01,2024-03-01,"], r"line 2: to '2024-03-01' is not after from"),
        (["A,2024-03-01,2024-01-01,"], r"line 2: to '2024-01-01' is not after from"),
        (["A,2024-03-01,,", "A,2025-01-01,,"], r"line 3: A is a member from 2024-03-01 .* on by line 2"),
        (["A,2024-03-01,2024-05-01,", "B,2024-01-01,,", "A,2024-04-30,,"], r"line 4: A is a member .* by line 2"),
        (["A,March,,"], r"line 2: from 'March': give a date"),
        (["A,,,"], r"line 2: from is missing"),
        ([",2024-01-01,,"], r"line 2: the instrument is missing"),
        (["A,2024-01-01,,Mars/North"], r"line 2: zone 'Mars/North'"),
        (["A,2024-01-01"], r"line 2: it has more or fewer cells"),
        ([], r"there is no membership in it"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_its_line(tmp_path: Path, rows: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_members(file(tmp_path, *rows))


def test_a_portfolio_names_the_file_of_its_members(tmp_path: Path) -> None:
    file(tmp_path, "A,2024-01-01,2024-02-01", "x:B,2024-01-15,", head="instrument,from,to")
    path = tmp_path / "p.yaml"
    path.write_text(
        "name: p\nstrategy: example\nuniverse:\n  name: u\n  timeframe: 1d\n  members: members.csv\n"
        "  instruments: [{id: 'x:A'}, {id: 'x:B'}]\n"
    )
    members = read_portfolio(path).universe.members
    assert members == {
        "x:A": (Membership(start=datetime(2024, 1, 1, tzinfo=UTC), end=datetime(2024, 2, 1, tzinfo=UTC)),),
        "x:B": (Membership(start=datetime(2024, 1, 15, tzinfo=UTC)),),
    }
    file(tmp_path, "C,2024-01-01,", head="instrument,from,to")
    with pytest.raises(UserError, match=r"p\.yaml: .*members\.csv has memberships of C, which is no instrument"):
        read_portfolio(path)


# --- features -----------------------------------------------------------------------------------------------------

CROSS = FeatureSet(
    [
        log_return(1),
        cross_mean(log_return(2)),
        cross_demean(log_return(1)),
        cross_zscore(log_return(1)),
        cross_rank(log_return(1)),
        of("B", log_return(1)),
    ]
)


def random_world(seed: int, count: int = 5, length: int = 60) -> tuple[Universe, BarArrays]:
    random = np.random.default_rng(seed)
    closes = 100.0 * np.exp(np.cumsum(random.normal(0.0, 0.02, (length, count)), axis=0))
    listed = [(0 if a < 3 else 20, length - (10 if a == 1 else 0)) for a in range(count)]
    members = {
        "x:A": (Membership(start=day(0)),),
        "x:C": (Membership(start=day(10), end=day(30)), Membership(start=day(40))),
        "x:D": (Membership(start=day(20), end=day(50)),),
        "x:E": (Membership(start=day(35)),),
    }
    bars = bars_of(closes, listed)
    return universe(bars.instruments, members), bars


def plain(bars: BarArrays, belongs: Sequence[Sequence[bool]]) -> list[list[list[float]]]:
    """The features as a few lines of plain Python have them, None-less: NaN where there is none."""
    found = []
    nothing = float("nan")

    def moved(a: int, t: int, back: int) -> float:
        own = [i for i in range(t + 1) if bars.present[i, a]]
        if len(own) <= back:
            return nothing
        return float(np.log(bars.close[own[-1], a] / bars.close[own[-1 - back], a]))

    for t in range(len(bars)):
        rows = []
        one = [moved(a, t, 1) for a in range(len(bars.instruments))]
        two = [moved(a, t, 2) for a in range(len(bars.instruments))]
        inside = [a for a in range(len(one)) if belongs[t][a]]
        ones = {a: one[a] for a in inside if one[a] == one[a]}
        twos = [two[a] for a in inside if two[a] == two[a]]
        mean = sum(ones.values()) / len(ones) if ones else nothing
        deviation = (sum((x - mean) ** 2 for x in ones.values()) / len(ones)) ** 0.5 if ones else nothing
        for a in range(len(one)):
            if not belongs[t][a]:
                rows.append([nothing] * 6)
                continue
            mean_of_two = sum(twos) / len(twos) if twos else nothing
            if a not in ones:
                rows.append([one[a], mean_of_two, nothing, nothing, nothing, one[1]])
                continue
            apart = one[a] - mean
            score = apart / deviation if deviation > 1e-9 * abs(mean) else 0.0
            below = sum(x < one[a] for x in ones.values())
            level = sum(x == one[a] for x in ones.values())
            rank = (2 * below + level - 1) / (len(ones) - 1) - 1.0 if len(ones) > 1 else 0.0
            rows.append([one[a], mean_of_two, apart, score, rank, one[1]])
        found.append(rows)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_cross_sections_run_over_members_alone(seed: int) -> None:
    world, bars = random_world(seed)
    roster = world.roster
    belongs = roster.inside(bars.close_us)
    assert 0 < belongs.sum(axis=1).min() < belongs.sum(axis=1).max() < 5
    batch = CROSS.compute({DAY: bars}, DAY, roster).values
    np.testing.assert_allclose(batch, np.array(plain(bars, belongs.tolist())), rtol=1e-9, atol=1e-12)
    stream = FeatureStream(CROSS, DAY, bars.instruments)
    for t in range(len(bars)):
        close_us = int(bars.close_us[t])
        values = stream.update(int(bars.open_us[t]), close_us, CROSS.frame(bars, t), roster.outside(close_us))
        np.testing.assert_array_equal(np.array(values), batch[t])


def digest(world: Universe, bars: BarArrays, first: int, last: int) -> str:
    store = MemoryBarStore(ManualClock(T0))
    for a, name in enumerate(bars.instruments):
        store.write(DAY, align([name], DAY, [bars.series(a)]))
    steps = basis_in_steps(store, CROSS, world, int(bars.open_us[first]), int(bars.open_us[last]))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return str(end.value)


def test_stored_features_stand_on_the_memberships_of_their_range() -> None:
    """Features of 20 days, of which the last closes at the open of day 30."""
    world, bars = random_world(0)
    told = digest(world, bars, 10, 30)
    c = world.members["x:C"]

    def changed(*stays: Membership) -> str:
        return digest(world.model_copy(update={"members": world.members | {"x:C": stays}}), bars, 10, 30)

    assert changed(*c) == told
    assert changed(c[0], Membership(start=day(41))) == told, "what is after the range changes nothing"
    assert changed(c[0].model_copy(update={"end": day(35)}), c[1]) != told, "it belongs at the last close now"
    assert changed(c[0].model_copy(update={"end": day(29)}), c[1]) != told
    assert digest(world.model_copy(update={"members": {}}), bars, 10, 30) != told


def test_who_is_not_known_is_not_waited_for_where_members_change() -> None:
    world, bars = random_world(0)
    values = CROSS.compute({DAY: bars}, DAY, world.roster).values
    seen, hidden = shown(values, world)
    assert hidden is not None
    assert np.isnan(seen).any(axis=(1, 2)).tolist() == [t < 2 for t in range(len(bars))], (
        "only before anything is known"
    )
    unknown: Bools = np.asarray(np.isnan(values).any(axis=2))
    assert hidden[2:].tolist() == unknown[2:].tolist()
    assert not seen[2:][unknown[2:]].any()
    np.testing.assert_array_equal(seen[2:][~unknown[2:]], values[2:][~unknown[2:]])
    always = world.model_copy(update={"members": {}})
    same, nothing = shown(values, always)
    assert nothing is None
    np.testing.assert_array_equal(same, values)


# --- survivors ----------------------------------------------------------------------------------------------------


@reward(version="1")
class Growth:
    """Log return of equity."""

    def __call__(self, c: RewardContext) -> Floats:
        return np.log(c.equity / c.equity_prev)


STRATEGY = Strategy("even", [log_return(1)], Growth(), window=1, actions=TargetPosition(no_trade_band=0.0))
FREE = Costs(slippage_bps=0.0, fee_multiplier=0.0)


class Even:
    """A policy that wants an even share of everything."""

    def __init__(self, count: int) -> None:
        self._answer = np.ones((1, count))

    def act(self, observation: Float32s) -> Floats:
        return self._answer


def traded(world: Universe, bars: BarArrays) -> BacktestResult:
    limits = RiskLimits(max_drawdown=1.0, max_price_age_bars=10_000)
    portfolio = Portfolio(name="p", universe=world, strategy="even", costs=FREE, limits=limits)
    roster = world.roster if world.members else None
    features = STRATEGY.feature_set.compute({DAY: bars}, DAY, roster).values
    return backtest(portfolio, STRATEGY, bars, features, Even(len(world.ids)))


UP, DOWN, LENGTH, GONE = 0.01, -0.03, 61, 41


def survival() -> tuple[BarArrays, Members]:
    """A gains a percent a day; B loses three, leaves at the open of day 41, and has no bars from day 46 on."""
    closes = np.array([[100.0 * (1.0 + rate) ** t for rate in (UP, DOWN)] for t in range(1, LENGTH + 1)])
    members = {"x:A": (Membership(start=day(0)),), "x:B": (Membership(start=day(0), end=day(GONE)),)}
    return bars_of(closes, [(0, LENGTH), (0, GONE + 5)]), members


def test_survivors_show_a_gain_where_members_show_the_truth() -> None:
    bars, members = survival()
    # The first feature is known at the close of day 1: positions are held from the open of day 2 on.
    days = LENGTH - 2
    survivors = traded(universe(["x:A"], {}), replace_instruments(bars, [0]))
    assert survivors.final_equity == pytest.approx(100_000.0 * (1 + UP) ** days, rel=1e-12)
    assert survivors.final_equity > 175_000.0
    true = traded(universe(bars.instruments, members), bars)
    together, alone = GONE - 2, LENGTH - GONE
    assert together + alone == days
    # Half in each, evened out every day; then half in the one that is left.
    expected = 100_000.0 * (1 + UP / 2 + DOWN / 2) ** together * (1 + UP / 2) ** alone
    assert true.final_equity == pytest.approx(expected, rel=1e-12)
    assert true.final_equity < 80_000.0
    assert true.denials == {"not_a_member": LENGTH - GONE + 1}, "B is wanted at each close from the last of day 40 on"
    assert true.denied == 0
    held = true.position[:, 1] != 0.0
    assert np.flatnonzero(held).tolist() == list(range(2, GONE))


def replace_instruments(bars: BarArrays, which: list[int]) -> BarArrays:
    return align([bars.instruments[a] for a in which], DAY, [bars.series(a) for a in which])


def test_baselines_hold_members_alone() -> None:
    bars, members = survival()
    world = universe(bars.instruments, members)
    portfolio = Portfolio(name="p", universe=world, strategy="even", costs=FREE)
    features = STRATEGY.feature_set.compute({DAY: bars}, DAY, world.roster).values
    found = baselines(portfolio, STRATEGY, bars, features)
    for name, result in found.items():
        assert not result.position[GONE:, 1].any(), name
    held = 50_000.0 * (1 + UP) ** (LENGTH - 2) + 50_000.0 * (1 + DOWN) ** (GONE - 2)
    assert found["buy_and_hold"].final_equity == pytest.approx(held, rel=1e-9)
    before = 50_000.0 * ((1 + UP) ** (GONE - 2) + (1 + DOWN) ** (GONE - 2))
    assert found["equal_weight"].final_equity == pytest.approx(before * (1 + UP) ** (LENGTH - GONE), rel=1e-9)


def test_an_instrument_that_is_gone_is_sold_when_it_trades_again() -> None:
    bars, members = survival()
    lacking = replace(bars, present=bars.present.copy())
    lacking.present[GONE : GONE + 3, 1] = False
    result = traded(universe(bars.instruments, members), lacking)
    assert np.flatnonzero(result.position[:, 1]).tolist() == list(range(2, GONE + 3))
    assert result.fill_quantity[GONE + 3, 1] < 0.0


# --- the largest --------------------------------------------------------------------------------------------------


def traded_series(seed: int, count: int = 6, length: int = 200, hour: int = 0) -> dict[str, Series]:
    """Days that open at an hour, which are open while members change if that is not midnight."""
    random = np.random.default_rng(seed)
    found: dict[str, Series] = {}
    for a in range(count):
        first, last = sorted(random.choice(length, 2, replace=False).tolist()) if a > 1 else (0, length)
        rows = np.flatnonzero(random.random(length) < 0.8)
        rows = rows[(rows >= first) & (rows < last)]
        close = 100.0 * np.exp(np.cumsum(random.normal(0.0, 0.05, length)))[rows]
        volume = np.exp(np.cumsum(random.normal(0.0, 0.3, length)))[rows] * (random.random(len(rows)) > 0.05)
        opens = np.array([to_us(day(int(t))) + hour * Timeframe.H1.us for t in rows], dtype=np.int64)
        found[f"I{a}"] = {"open_us": opens, "close": close, "volume": volume}
    return found


def by_hand(
    series: dict[str, Series], top: int, dollars: bool, dates: list[datetime], window: timedelta
) -> list[set[str]]:
    """The largest at each date, by going over every bar."""
    chosen = []
    for date in dates:
        sums: list[tuple[float, int, str]] = []
        for place, (name, one) in enumerate(series.items()):
            total = 0.0
            for open_us, close, volume in zip(
                one["open_us"].tolist(), one["close"].tolist(), one["volume"].tolist(), strict=True
            ):
                opened = from_us(open_us)
                if date - window <= opened and opened + timedelta(days=1) <= date:
                    total += volume * close if dollars else volume
            if total > 0.0:
                sums.append((-total, place, name))
        chosen.append({name for *_, name in sorted(sums)[:top]})
    return chosen


def members_at(found: Members, date: datetime) -> set[str]:
    return {
        name
        for name, each in found.items()
        for one in each
        if one.start <= date and (one.end is None or date < one.end)
    }


@pytest.mark.parametrize("seed", [0, 2, 3])
@pytest.mark.parametrize("dollars", [False, True])
@pytest.mark.parametrize("hour", [0, 9])
def test_the_largest_are_those_that_were_traded_most_before(seed: int, dollars: bool, hour: int) -> None:
    series = traded_series(seed, hour=hour)
    dates = [datetime(2024, month, 1, tzinfo=UTC) for month in range(2, 8)]
    window = timedelta(days=30)
    measure: Measure = "dollar_volume" if dollars else "volume"
    found = largest(series, DAY, 2, measure, (1, "mo"), 30 * DAY.us)
    expected = by_hand(series, 2, dollars, dates, window)
    assert [members_at(found, date) for date in dates] == expected
    assert [members_at(found, date + timedelta(days=20)) for date in dates] == expected
    assert members_at(found, dates[0] - timedelta(seconds=1)) == set()
    assert len({frozenset(each) for each in expected}) > 1, "members change"


@pytest.mark.parametrize("seed", range(3))
def test_later_bars_change_no_earlier_membership(seed: int) -> None:
    series = traded_series(seed, hour=15)
    found = largest(series, DAY, 2, "volume", (1, "w"), 30 * DAY.us)
    cut = to_us(day(120))
    random = np.random.default_rng(seed + 100)
    scrambled: dict[str, Series] = {}
    for name, one in series.items():
        late = one["open_us"] + DAY.us > cut
        volume = np.where(late, one["volume"] * np.exp(random.normal(0.0, 5.0, len(late))), one["volume"])
        scrambled[name] = {**one, "volume": volume}
    other = largest(scrambled, DAY, 2, "volume", (1, "w"), 30 * DAY.us)
    dates = [from_us(at) for at in change_dates(to_us(day(30)), to_us(day(199)), (1, "w"))]
    before = [members_at(found, date) == members_at(other, date) for date in dates if to_us(date) <= cut]
    assert all(before)
    assert len(before) > 10
    assert not all(members_at(found, date) == members_at(other, date) for date in dates)


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        ((1, "w"), ["2024-01-08", "2024-01-15", "2024-01-22", "2024-01-29", "2024-02-05"]),
        ((1, "mo"), ["2024-02-01"]),
        ((1, "d"), [f"2024-01-{number:02}" for number in range(2, 32)] + [f"2024-02-0{n}" for n in range(1, 7)]),
    ],
)
def test_members_change_at_midnights(every: Every, expected: list[str]) -> None:
    dates = [from_us(at) for at in change_dates(to_us(day(0)) + 1, to_us(day(36)), every)]
    assert [f"{date:%Y-%m-%d}" for date in dates] == expected
    assert all(date == datetime(date.year, date.month, date.day, tzinfo=UTC) for date in dates)


def test_quarters_begin_with_the_year() -> None:
    dates = [from_us(at) for at in change_dates(to_us(day(31)), to_us(day(400)), (3, "mo"))]
    assert [(date.month, date.day) for date in dates] == [(4, 1), (7, 1), (10, 1), (1, 1)]


def test_the_largest_need_volumes_and_a_whole_window() -> None:
    series = traded_series(0)
    series["I1"] = {**series["I1"], "volume": np.full(len(series["I1"]["volume"]), np.nan)}
    with pytest.raises(UserError, match="I1: not all of its bars have a volume"):
        largest(series, DAY, 2, "volume", (1, "mo"), 30 * DAY.us)
    with pytest.raises(UserError, match="give more bars"):
        largest(traded_series(0), DAY, 2, "volume", (1, "mo"), 300 * DAY.us)
