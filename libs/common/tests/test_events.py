"""Events of instruments: their files, what is in force when, and what they do to a book and to gaps."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeloop.common.errors import UserError
from tradeloop.common.evaluation.backtest import follow
from tradeloop.common.market import BarArrays, InForce, InstrumentEvent, Timeframe, Universe, to_us
from tradeloop.common.market.calendars import gaps
from tradeloop.common.market.event_file import read_events
from tradeloop.common.market.events import check_events, resting
from tradeloop.common.portfolio import Costs, Portfolio, PortfolioSettings, RiskLimits, read_portfolio
from tradeloop.common.risk import Verdict
from tradeloop.common.simulation import Simulator, market_of
from tradeloop.common.strategy import load

HOUR = timedelta(hours=1)
LIMITS = RiskLimits(max_drawdown=1.0, maintenance_margin=0.0, max_position=9.0, max_leverage=9.0)
DAY = datetime(2024, 6, 10, tzinfo=UTC)


def event(kind: str, hours: float, **more: object) -> InstrumentEvent:
    return InstrumentEvent.model_validate({"time": DAY + hours * HOUR, "kind": kind, **more})


def file_of(folder: Path, *rows: str, head: str = "instrument,time,kind,proceeds,symbol") -> Path:
    path = folder / "events.csv"
    path.write_text("\n".join((head, *rows)) + "\n")
    return path


# --- files ---------------------------------------------------------------------------------------------------------


def test_a_file_is_read_as_it_is_meant(tmp_path: Path) -> None:
    """In any order of rows, under the old and the new symbol, with zones in times or in rows."""
    path = file_of(
        tmp_path,
        "META,2024-06-10T13:00:00+02:00,resume,,,",
        "FB,2024-06-09T00:00,rename,,META,America/New_York",
        "FB,2024-06-08T10:00Z,halt,,,",
        "FB,2024-06-08T11:00Z,resume,,,",
        "META,2024-06-10T10:00Z,halt,,,",
        "EVIL,2024-07-01T00:00Z,Delisting,1.25,,",
        head="instrument,time,kind,proceeds,symbol,zone",
    )
    file = read_events(path)
    assert file.names == {"META": ("FB", "META"), "EVIL": ("EVIL",)}
    assert [(one.kind, one.time) for one in file.events["META"]] == [
        ("halt", datetime(2024, 6, 8, 10, tzinfo=UTC)),
        ("resume", datetime(2024, 6, 8, 11, tzinfo=UTC)),
        ("rename", datetime(2024, 6, 9, 4, tzinfo=UTC)),
        ("halt", datetime(2024, 6, 10, 10, tzinfo=UTC)),
        ("resume", datetime(2024, 6, 10, 11, tzinfo=UTC)),
    ]
    assert (file.events["META"][2].symbol_before, file.events["META"][2].symbol) == ("FB", "META")
    assert file.events["EVIL"][0].proceeds == 1.25


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "there is no event in it"),
        ([",2024-06-10T10:00Z,halt,,"], "line 2: the instrument is missing"),
        (["A,,halt,,"], "line 2: the time is missing"),
        (["A,2024-06-10T10:00,halt,,"], "line 2: time '2024-06-10T10:00' names no zone"),
        (["A,2024-06-10,halt,,"], "line 2: time '2024-06-10' names no zone"),
        (["A,soon,halt,,"], "line 2: time 'soon'"),
        (["A,2024-06-10T10:00Z,pause,,"], "line 2: kind 'pause': give halt, resume, delisting or rename"),
        (["A,2024-06-10T10:00Z,delisting,,"], "line 2: a delisting needs its proceeds for each unit"),
        (["A,2024-06-10T10:00Z,delisting,-1,"], "line 2: proceeds '-1'"),
        (["A,2024-06-10T10:00Z,delisting,nan,"], "line 2: proceeds 'nan'"),
        (["A,2024-06-10T10:00Z,delisting,some,"], "line 2: proceeds 'some': give a number of at least 0"),
        (["A,2024-06-10T10:00Z,halt,3,"], "line 2: proceeds are of a delisting, and this is a halt"),
        (["A,2024-06-10T10:00Z,halt,,B"], "line 2: a symbol is of a rename, and this is a halt"),
        (["A,2024-06-10T10:00Z,rename,,"], "line 2: symbol is missing"),
        (["A,2024-06-10T10:00Z,rename,,A"], "line 2: a rename from A to A changes nothing"),
        (["A,2024-06-10T10:00Z,rename,,B C"], "line 2: symbol 'B C'"),
        (["A,2024-06-10T10:00Z,resume,,"], "line 2: A, 2024-06-10 10:00:00+00:00: a resume without a halt"),
        (
            ["A,2024-06-10T10:00Z,halt,,", "A,2024-06-10T11:00Z,halt,,"],
            "line 3: A, 2024-06-10 11:00:00+00:00: a halt, and trading is halted already",
        ),
        (
            ["A,2024-06-10T12:00Z,halt,,", "A,2024-06-10T11:00Z,delisting,0,"],
            "line 2: A, 2024-06-10 12:00:00+00:00: a halt after its delisting at 2024-06-10 11:00:00+00:00",
        ),
        (["A,2024-06-10T10:00Z,halt,,", "A,2024-06-10T10:00+00:00,halt,,"], "line 3: line 2 has the same halt of A"),
        (
            ["A,2024-06-10T10:00Z,halt,,", "A,2024-06-10T10:00Z,resume,,"],
            "line 3: A, 2024-06-10 10:00:00+00:00: a halt and a resume at one time",
        ),
        (
            ["B,2024-06-01T10:00Z,halt,,", "A,2024-06-10T10:00Z,rename,,B"],
            "line 3: A is renamed onto B, a symbol that is there already",
        ),
        (
            ["A,2024-06-10T10:00Z,rename,,C", "B,2024-06-11T10:00Z,rename,,C"],
            "line 3: B is renamed onto C, a symbol that is there already",
        ),
        (
            ["A,2024-06-10T10:00Z,rename,,B", "A,2024-06-11T10:00Z,rename,,C"],
            "line 3: A is B by then: name it so",
        ),
    ],
)
def test_a_bad_file_gets_one_line(tmp_path: Path, rows: list[str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        read_events(file_of(tmp_path, *rows))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ({"x:C": (event("halt", 1),)}, "events of x:C, which is no instrument of the universe"),
        ({"x:A": ()}, "x:A has an empty list of events"),
        ({"x:A": (event("halt", 2), event("resume", 1))}, "comes after an event"),
        ({"x:A": (event("rename", 1, symbol_before="Z", symbol="B"),)}, "x:A is renamed onto B, a symbol that x:B has"),
        (
            {
                "x:A": (
                    event("rename", 1, symbol_before="Z", symbol="A"),
                    event("rename", 2, symbol_before="Y", symbol="A"),
                )
            },
            "a rename of Y, and the symbol is A by then",
        ),
    ],
)
def test_a_universe_refuses_events_that_cannot_be(events: dict[str, tuple[InstrumentEvent, ...]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_events(events, ("x:A", "x:B"))
    with pytest.raises(ValueError, match=said):
        universe(("x:A", "x:B"), events)


def universe(ids: Sequence[str], events: object) -> Universe:
    return Universe.model_validate(
        {"name": "u", "instruments": [{"id": one} for one in ids], "timeframe": "1h", "events": events}
    )


def test_a_universe_without_events_says_nothing_of_them() -> None:
    plain = universe(("x:A",), {})
    assert "events" not in plain.model_dump_json()
    assert (plain.changes, plain.events_id, plain.roster.is_open) == (False, "", True)
    told = universe(("x:A",), {"x:A": (event("halt", 1),)})
    assert Universe.model_validate_json(told.model_dump_json()) == told
    assert (told.changes, told.roster.is_open) == (False, True)
    assert told.events_id != universe(("x:A",), {"x:A": (event("halt", 2),)}).events_id


def test_the_yaml_of_a_portfolio_names_a_file(tmp_path: Path) -> None:
    file_of(tmp_path, "B,2024-06-10T10:00Z,rename,,A", "A,2024-06-11T10:00Z,delisting,2,")
    text = (
        "name: book\nstrategy: example\nuniverse:\n  name: u\n  timeframe: 1h\n"
        "  instruments: [{id: 'x:A'}, {id: 'x:C'}]\n  events: events.csv\n"
    )
    path = tmp_path / "book.yaml"
    path.write_text(text)
    events = read_portfolio(path).universe.events
    assert [one.kind for one in events["x:A"]] == ["rename", "delisting"]
    path.write_text(text.replace("x:A", "x:D"))
    with pytest.raises(UserError, match="has events of A, which is no instrument of it"):
        read_portfolio(path)


# --- what is in force ----------------------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> tuple[InstrumentEvent, ...]:
    """Halts and resumes by turns, maybe a delisting behind them."""
    hours = sorted(draw(st.sets(st.integers(0, 40), max_size=6)))
    found = [event("resume" if place % 2 else "halt", at) for place, at in enumerate(hours)]
    if draw(st.booleans()):
        found.append(event("delisting", 41 + draw(st.integers(0, 9)), proceeds=draw(st.integers(0, 9))))
    return tuple(found)


@settings(max_examples=60, deadline=None)
@given(st.lists(histories(), min_size=1, max_size=3))
def test_what_is_in_force_is_what_came_last(every: list[tuple[InstrumentEvent, ...]]) -> None:
    ids = tuple(f"x:{a}" for a in range(len(every)))
    force = InForce(ids, {id_: ones for id_, ones in zip(ids, every, strict=True) if ones})
    times = np.array([to_us(DAY + HOUR * at / 2) for at in range(-2, 110)], dtype=np.int64)
    halted, delisted = force.halted_at(times), force.delisted_at(times)
    for t, time_us in enumerate(times.tolist()):
        last = [[one for one in ones if to_us(one.time) <= time_us][-1:] for ones in every]
        kinds = [one[0].kind if one else "" for one in last]
        assert halted[t].tolist() == [kind == "halt" for kind in kinds]
        assert delisted[t].tolist() == [kind == "delisting" for kind in kinds]
        assert force.halted(time_us) == tuple(id_ for id_, kind in zip(ids, kinds, strict=True) if kind == "halt")
        assert {(one.instrument, one.proceeds) for one in force.delisted(time_us)} == {
            (id_, one[0].proceeds) for id_, one in zip(ids, last, strict=True) if one and one[0].kind == "delisting"
        }
        assert len(force.lasting(time_us)) == sum(kind in ("halt", "delisting") for kind in kinds)
    told = [each for t in range(len(times) - 1) for each in force.between(int(times[t]), int(times[t + 1]))]
    assert sorted(told, key=lambda each: (each[0], each[1].time)) == [
        (id_, one) for id_, ones in zip(ids, every, strict=True) for one in ones
    ]


def test_a_symbol_follows_its_renames() -> None:
    renames = (
        event("rename", 1, symbol_before="A", symbol="B"),
        event("rename", 3, symbol_before="B", symbol="C"),
    )
    force = InForce(("x:C", "x:D"), {"x:C": renames})
    at = [force.symbol("x:C", to_us(DAY + HOUR * hours)) for hours in (0, 1, 2.9, 3)]
    assert at == ["A", "B", "B", "C"]
    assert force.symbol("x:D", 0) == "D"


def test_a_delisting_ends_a_membership_and_no_other() -> None:
    members = {"x:A": [{"start": DAY}], "x:B": [{"start": DAY, "end": DAY + HOUR}, {"start": DAY + 5 * HOUR}]}
    events = {"x:A": (event("delisting", 3, proceeds=1),), "x:B": (event("delisting", 4, proceeds=1),)}
    told = Universe.model_validate(
        {
            "name": "u",
            "instruments": [{"id": "x:A"}, {"id": "x:B"}],
            "timeframe": "1h",
            "members": members,
            "events": events,
        }
    )
    inside = told.roster.inside(np.array([to_us(DAY + HOUR * at) for at in range(7)], dtype=np.int64))
    assert inside[:, 0].tolist() == [True, True, True, False, False, False, False]
    assert inside[:, 1].tolist() == [True, False, False, False, False, False, False]


# --- what they do --------------------------------------------------------------------------------------------------


def flat(prices: Sequence[Sequence[float]]) -> BarArrays:
    """Bars of an hour, each at one price."""
    price = np.array(prices, dtype=np.float64)
    opens = to_us(DAY) + np.arange(len(price), dtype=np.int64) * Timeframe.H1.us
    nothing = np.zeros_like(price)
    return BarArrays(
        tuple(f"x:{letter}" for letter in "ABC"[: price.shape[1]]),
        opens,
        opens + Timeframe.H1.us,
        price,
        price,
        price,
        price,
        volume=nothing + 1e9,
        funding_rate=nothing,
        present=np.ones_like(price, dtype=np.bool_),
    )


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("proceeds", [0.0, 30.0, 250.0])
def test_who_holds_what_is_delisted_gets_its_proceeds_and_loses_the_rest(proceeds: float, short: bool) -> None:
    """Closed form: an even share of 100 at a price of 100 becomes `proceeds`, to the cent, without a fee."""
    bars = flat([[100.0, 100.0]] * 8)
    told = universe(("x:A", "x:B"), {"x:A": (event("delisting", 5, proceeds=proceeds),)})
    simulator = Simulator(
        1, told.instruments, capital=1000.0, costs=Costs(slippage_bps=0.0), limits=LIMITS, no_trade_band=0.0
    )
    fees = 2 * 500.0 * 5e-4
    weights = np.array([[-0.5 if short else 0.5, 0.5]])
    hold = np.full((1, 2), np.nan)
    result = follow(simulator, bars, lambda t: weights if t == 0 else hold, told)[0]
    units = -5.0 if short else 5.0
    assert result.equity[4] == pytest.approx(1000.0 - fees)
    assert result.equity[5:] == pytest.approx(1000.0 - fees + units * (proceeds - 100.0))
    assert (result.fill_quantity[5, 0], result.fill_price[5, 0], result.fill_fee[5, 0]) == (-units, proceeds, 0.0)
    assert not result.position[5:, 0].any()
    assert result.position[-1, 1] == 5.0


def test_a_policy_that_always_holds_what_dies_loses_exactly_that_holding() -> None:
    """Bars that merely end leave it in the book at its last price: what trains on survivors cannot see the loss."""
    bars = flat([[100.0, 100.0]] * 8)
    gone = bars.present.copy()
    gone[5:, 0] = False
    bars = BarArrays(**{name: getattr(bars, name) for name in bars.__slots__} | {"present": gone})
    events = {"x:A": (event("delisting", 5, proceeds=0.0),)}
    values = []
    for told in (universe(("x:A", "x:B"), {}), universe(("x:A", "x:B"), events)):
        simulator = Simulator(
            1,
            told.instruments,
            capital=1000.0,
            costs=Costs(slippage_bps=0.0, fee_multiplier=0.0),
            limits=LIMITS,
            no_trade_band=0.0,
        )
        values.append(follow(simulator, bars, lambda t: np.array([[0.5, np.nan if t else 0.5]]), told)[0])
    assert values[0].equity[-1] == pytest.approx(1000.0)
    assert values[1].equity[-1] == pytest.approx(500.0)
    assert values[1].denials == {"delisted": 4}, "targets at the closes from 5:00 to 8:00"


def test_a_halt_keeps_positions_and_denies_orders() -> None:
    bars = flat([[100.0], [110.0], [120.0], [130.0], [140.0], [150.0], [160.0]])
    told = universe(("x:A",), {"x:A": (event("halt", 2.5), event("resume", 5))})
    simulator = Simulator(
        1,
        told.instruments,
        capital=1000.0,
        costs=Costs(slippage_bps=0.0, fee_multiplier=0.0),
        limits=RiskLimits(max_price_age_bars=0),
        no_trade_band=0.0,
    )
    result = follow(simulator, bars, lambda t: np.array([[0.1 * t]]), told)[0]
    held = result.position[:, 0].tolist()
    assert held[2] > held[1] == 0.0
    assert held[3] == held[2], "closed at 3:00, which is in the halt: no order"
    assert held[4] == held[2]
    assert held[5] > held[4], "decided at 5:00, when it trades again"
    assert result.denials == {"trading_halted": 2}
    assert result.equity[4] == pytest.approx(1000.0 + held[2] * 20.0), "it is marked at its last price"


def test_a_stale_price_is_none_that_a_halt_explains() -> None:
    """Bars that are missing in a halt do not make the price old; those that are missing after it do."""
    bars = flat([[100.0, 100.0]] * 9)
    gone = bars.present.copy()
    gone[2:6, 0] = False
    bars = BarArrays(**{name: getattr(bars, name) for name in bars.__slots__} | {"present": gone})
    codes = {}
    for resumes in (5, 6):
        told = universe(("x:A", "x:B"), {"x:A": (event("halt", 2.5), event("resume", resumes))})
        simulator = Simulator(
            1,
            told.instruments,
            capital=1000.0,
            costs=Costs(slippage_bps=0.0),
            limits=RiskLimits(max_price_age_bars=0),
            no_trade_band=0.0,
        )
        codes[resumes] = follow(simulator, bars, lambda t: np.array([[0.1 + 0.01 * t, np.nan]]), told)[0].denials
    assert codes[6] == {"trading_halted": 3, "stale_price": 1}
    assert codes[5] == {"trading_halted": 2, "stale_price": 2}


def test_bars_that_are_missing_in_a_halt_are_no_gaps() -> None:
    opens = to_us(DAY) + np.array([0, 1, 5, 6, 9], dtype=np.int64) * Timeframe.H1.us
    assert [gap.bars for gap in gaps(opens, Timeframe.H1, "continuous")] == [3, 2]
    halted = resting((event("halt", 2), event("resume", 4.5)))
    assert [gap.bars for gap in gaps(opens, Timeframe.H1, "continuous", halted)] == [2]
    partly = resting((event("halt", 2), event("resume", 3)))
    assert [gap.bars for gap in gaps(opens, Timeframe.H1, "continuous", partly)] == [2, 2]
    over = resting((event("delisting", 7, proceeds=0.0),))
    assert [gap.bars for gap in gaps(opens, Timeframe.H1, "continuous", over)] == [3]
    minutes = to_us(datetime(2024, 6, 10, 14, tzinfo=UTC)) + np.array([0, 1, 5], dtype=np.int64) * Timeframe.M1.us
    halted = [(to_us(datetime(2024, 6, 10, 14, 2, tzinfo=UTC)), to_us(datetime(2024, 6, 10, 14, 4, tzinfo=UTC)))]
    assert [gap.bars for gap in gaps(minutes, Timeframe.M1, "XNYS", halted)] == [1]


def test_portfolios_of_one_universe_agree_on_its_events() -> None:
    strategy = load("example").name
    books = []
    for name, events in (("one", {}), ("two", {"x:A": (event("halt", 1),)})):
        books.append(Portfolio(name=name, universe=universe(("x:A",), events), strategy=strategy))
    with pytest.raises(UserError, match="define universe u differently: events, with the digest none and"):
        PortfolioSettings(portfolios=tuple(books)).read_portfolios()


def test_a_portfolio_that_is_halted_orders_nothing_of_what_is_delisted() -> None:
    """What the limits would sell is closed at the proceeds at the next open; an order would only expire."""
    bars = flat([[100.0, 100.0], [100.0, 100.0], [100.0, 100.0], [100.0, 20.0], [100.0, 20.0], [100.0, 20.0]])
    told = universe(("x:A", "x:B"), {"x:A": (event("delisting", 4, proceeds=70.0),)})
    simulator = Simulator(
        1,
        told.instruments,
        capital=1000.0,
        costs=Costs(slippage_bps=0.0, fee_multiplier=0.0),
        limits=RiskLimits(max_drawdown=0.3),
        no_trade_band=0.0,
    )
    hold = np.full((1, 2), np.nan)
    result = follow(simulator, bars.slice(0, 4), lambda t: np.array([[0.5, 0.5]]) if t == 0 else hold, told)[0]
    assert result.halted_at == 3
    assert simulator.books.pending[0].tolist() == [0.0, -5.0]
    assert [Verdict(code) for code in simulator.books.verdict[0]] == [Verdict.UNCHANGED, Verdict.FLATTENED]
    simulator.fill_and_mark(market_of(bars, told), np.array([4]))
    assert simulator.books.position[0].tolist() == [0.0, 0.0]
    assert simulator.books.equity[0] == pytest.approx(5 * 70.0 + 5 * 20.0)
