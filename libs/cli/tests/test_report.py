"""The report is whole, says the right numbers, needs no network, and is the same bytes for the same run."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import struct
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.cli.tests.runs import START_US, THREE, make_run
from tradeloop.cli.report import text, write_report
from tradeloop.cli.report.charts import Chart, TimeAxis
from tradeloop.cli.report.figures import console_rows, summary
from tradeloop.cli.report.files import Run
from tradeloop.cli.report.page import page
from tradeloop.cli.report.trading import trading, trips
from tradeloop.common.evaluation.performance import bars_per_year, performance
from tradeloop.common.messages import RiskVerdict

VOID = {"meta", "br"}


class Outline(HTMLParser):
    """Asserts that elements nest, and collects the text of each kind of element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.classes: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.classes += (dict(attrs).get("class") or "").split()
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.classes += (dict(attrs).get("class") or "").split()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data


@pytest.fixture(scope="module")
def run() -> Run:
    return make_run(1500)


@pytest.fixture(scope="module")
def html(run: Run) -> str:
    return page(run)


def axis(length: int, step_us: int = 60_000_000) -> TimeAxis:
    return TimeAxis(START_US + step_us * np.arange(1, length + 1))


def points(path: str) -> list[tuple[int, int]]:
    """The corners of a path of one absolute move and relative lines."""
    moved, lines = path.removeprefix("M").split("l")
    corners = [tuple(map(int, moved.split()))]
    numbers = list(map(int, lines.split()))
    for dx, dy in zip(numbers[::2], numbers[1::2], strict=True):
        corners.append((corners[-1][0] + dx, corners[-1][1] + dy))
    return [(x, y) for x, y in corners]


def test_the_page_nests_and_shows_every_chart(html: str) -> None:
    outline = Outline(html)
    assert outline.texts["h2"] == [
        "Performance",
        "Trading of the policy",
        "More than luck?",
        "Round trips",
        "Equity against baselines",
        "Drawdown",
        "Trades on price: binance:BTC/USDT",
        "Exposure",
        "Reward components",
        "Read with care",
    ]
    assert [t.split()[0] for t in outline.texts["th"][1:5]] == ["Policy", "Buy", "Momentum", "Random"]


def test_every_svg_is_well_formed(html: str) -> None:
    svgs = re.findall(r'<svg class="outer".*?</svg>(?=<div class="values">)', html, flags=re.DOTALL)
    assert len(svgs) == 5
    for svg in svgs:
        assert ET.fromstring(svg).get("aria-label")
        assert not re.search(r"\b(nan|inf)\b", svg)


def test_the_page_needs_no_network(html: str) -> None:
    assert not re.search(r"https?:|//[a-z]|<link|@import|src=|url\(", html)
    assert "default-src 'none'" in html


def test_the_samples_of_the_crosshair_fit_the_legends(run: Run, html: str) -> None:
    samples = json.loads(re.findall(r'id="samples">(.*?)</script>', html, flags=re.DOTALL)[0])
    assert len(samples["at"]) == len(samples["times"]) == 500
    assert samples["times"][-1] == "2022-01-04 01:00 UTC"
    legends = dict(re.findall(r'data-chart="(\w+)">(.*?)</div>', html))
    assert set(legends) == set(samples["charts"])
    for name, legend in legends.items():
        last = [values[-1] for values in samples["charts"][name]]
        assert re.findall(r"<b>(.*?)</b>", legend) == last
        assert {len(values) for values in samples["charts"][name]} == {500}
    assert samples["charts"]["equity"][0][-1] == text.number(run.marks[-1].equity, 0)


def test_names_are_escaped(run: Run) -> None:
    nasty = "</script><script>alert(1)</script>"
    html = page(dataclasses.replace(run, source=nasty, baselines={**run.baselines, nasty: run.baselines["cash"]}))
    assert html.count("<script") == 2
    Outline(html)


def test_the_same_run_gives_the_same_bytes(run: Run, tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    for folder, one in ((first, run), (again, make_run(1500))):
        folder.mkdir()
        assert write_report(folder, one) == [folder / "report.html", folder / "equity.png"]
    for name in ("report.html", "equity.png"):
        assert (first / name).read_bytes() == (again / name).read_bytes()


def test_the_picture_says_nothing_of_its_making(run: Run, tmp_path: Path) -> None:
    write_report(tmp_path, run)
    picture = (tmp_path / "equity.png").read_bytes()
    chunks, at = [], 8
    while at < len(picture):
        length, kind = struct.unpack(">I4s", picture[at : at + 8])
        chunks.append(kind)
        at += 12 + length
    assert set(chunks) == {b"IHDR", b"pHYs", b"IDAT", b"IEND"}


def test_a_large_report_stays_small_and_its_trades_legible() -> None:
    run = make_run(4000)
    html = page(run)
    assert len(html) < 600_000
    assert len(run.fills) > 500
    assert 40 < Outline(html).classes.count("buy") < 200
    assert "Each triangle averages one side over 50 minutes." in html


def test_few_trades_are_drawn_one_by_one() -> None:
    run = make_run(60)
    assert 0 < len(run.fills) < 20
    assert page(run).count("<use ") == len(run.fills)


def test_a_run_without_trades_says_so() -> None:
    html = page(make_run(100, trade=False))
    assert "No trades." in html
    assert "<use " not in html


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_shortest_runs_have_a_report(length: int, tmp_path: Path) -> None:
    write_report(tmp_path, make_run(length))
    Outline((tmp_path / "report.html").read_text())


def test_a_halt_is_told() -> None:
    html = page(make_run(1500, step=4e-3, portfolio_options={"limits": {"max_drawdown": 0.05}}))
    assert "It was halted by its risk limits." in html
    assert "halted: drawdown" in html
    assert "<td>drawdown_halt</td>" in html


@pytest.mark.parametrize(("denied", "warned"), [(2, False), (40, True)])
def test_denied_orders_are_counted_and_many_of_them_warned_of(denied: int, warned: bool) -> None:
    run = make_run(1500)
    decided = [signal for signal in run.signals if not signal.hold]
    assert len(decided) > 1000
    for signal in decided[:denied]:
        verdict = RiskVerdict(
            universe=signal.universe,
            portfolio=signal.portfolio,
            time=signal.time,
            code="max_leverage",
            instrument=run.portfolio.universe.ids[0],
            measured=1.2,
            limit=1.05,
            text="gross position as a multiple of equity: 1.2, limit 1.05",
        )
        run.verdicts.append(verdict)  # type: ignore[attr-defined]  # a list here
    figures = trading(run)
    assert (figures.denials, figures.denied) == ({"max_leverage": denied}, denied)
    html = page(run)
    assert f"{denied:,} <small>max_leverage {denied:,}</small>" in html
    assert ("it did not trade as it decided" in html) == warned


def test_costs_that_were_not_charged_are_told() -> None:
    costs = {"impact_bps": 10.0, "max_participation": 0.5}
    length = 1500
    whole = page(make_run(length, portfolio_options={"costs": costs}))
    assert "have no volume" not in whole
    lacking = page(make_run(length, THREE, portfolio_options={"costs": costs}))
    assert "impact_bps and max_participation of the costs count for nothing there.</b>" in lacking
    assert "bars have no volume (binance:ETH/USDT)" in lacking


def test_chance_is_told_where_a_reader_begins(run: Run) -> None:
    found = run.significance
    assert found is not None
    as_good = int((found.draws >= found.growth).sum())
    html = page(run)
    assert f"did at least as well {text.count(as_good, 'time')} out of 200 (p = {(as_good + 1) / 201:.3f})" in html
    assert f"{(as_good + 1) / 201:.3f} <small>{as_good} of 200 shuffles" in html
    assert f"cut into {found.blocks} blocks" in html


def test_alpha_and_beta_are_those_to_buy_and_hold(run: Run) -> None:
    equity = np.array([mark.equity for mark in run.marks])
    mine, market = (np.diff(curve) / curve[:-1] for curve in (equity, run.baselines["buy_and_hold"].equity))
    alpha, beta = np.linalg.lstsq(np.column_stack((np.ones(len(mine)), market)), mine, rcond=None)[0]
    found = summary(run)["to_buy_and_hold"]
    assert (found["alpha"], found["beta"]) == pytest.approx((alpha * 365.25 * 24 * 60, beta))
    assert f"<td>{text.number(beta, 3)}<small>" in page(run)


def test_round_trips_add_up_to_what_was_won(run: Run) -> None:
    found = trips(run)
    assert len(found) > 10
    assert sum(trip.gain for trip in found) == pytest.approx(run.marks[-1].equity - run.portfolio.capital, abs=1e-6)
    sides = np.sign([mark.positions[0].quantity for mark in run.marks])
    assert len(found) == sum(b not in (0.0, a) for a, b in pairwise(sides))
    assert summary(run)["round_trips"]["count"] == len(found)
    assert f"<td>{len(found)} <small>1 still open, valued at the last close</small></td>" in page(run)


def test_what_is_not_traded_is_not_judged() -> None:
    run = make_run(100, trade=False)
    html = page(run)
    assert "It traded nothing.</p>" in html
    assert "(p = " not in html
    assert "the policy traded nothing" in html
    assert "random" not in run.baselines
    found = summary(run)
    assert (found["p_value"], found["round_trips"]["count"], found["unsized_targets"]) == (None, 0, 0)
    assert found["to_buy_and_hold"] is None
    assert "no returns to compare" in html
    assert dict(console_rows(found))["round trips, won"] == "0"
    json.dumps(found, allow_nan=False)


def test_a_price_above_the_capital_is_told() -> None:
    run = make_run(200, lot=5.0)  # five cost more than twice the capital
    assert not run.fills
    html = page(run)
    decisions = 200 - 16
    assert "It traded nothing. Each position that it wanted was too small for an order" in html
    assert f"Buy and hold could not open a position {decisions} times: less than a lot" in html
    found = summary(run)
    assert found["unsized_targets"] == trading(run).unsized > 100
    assert f"<td>{found['unsized_targets']} <small>targets below a lot" in html
    assert dict(console_rows(found))["targets too small for an order"] == str(found["unsized_targets"])


@pytest.mark.parametrize("instruments", [THREE[:1], THREE])
def test_what_could_be_sized_is_not_told_to_be_too_small(instruments: tuple[str, ...]) -> None:
    run = make_run(300, instruments, missing=0.1)
    assert trading(run).unsized == 0
    assert "Too small" not in page(run)


def test_a_baseline_that_was_halted_says_when() -> None:
    run = make_run(1500, step=4e-3, portfolio_options={"limits": {"max_drawdown": 0.05}})
    assert run.significance is not None
    assert run.significance.halted > 0
    at = run.baselines["random"].halted_at
    assert at is not None
    html = page(run)
    assert f"<b>Random was halted at {text.time(int(run.bars.close_us[at]))} UTC.</b>" in html
    assert f"{run.significance.halted} were halted by the limits" in html
    assert "Buy and hold was halted" not in html


def test_training_is_shown_beside_the_run() -> None:
    training = {"sharpe": 19.0, "total_return": 3.5, "valid_sharpe": -0.25, "valid_sharpe_error": 1.5, "reward": 7.0}
    run = make_run(300, training=training)
    html = page(run)
    table = html[html.index("Training beside this run") :]
    assert re.findall(r"<th>(.*?)</th>", table)[:4] == ["", "In sample", "Validation", "This run"]
    rows = {name: re.findall(r"<td>(.*?)</td>", row) for name, row in re.findall(r'"row">(.*?)</th>(.*?)</tr>', table)}
    assert rows["Sharpe ratio"][:2] == ["19.00", "\N{MINUS SIGN}0.25"]
    assert rows["sharpe_error"] == [text.NOTHING, "1.50", text.NOTHING]
    assert rows["Return"][1] == text.NOTHING
    ours = summary(run)["training"]["out_of_sample"]
    assert rows["Sharpe ratio"][2] == text.number(ours["sharpe"], 2)
    assert ours["total_return"] == pytest.approx(run.marks[-1].equity / run.portfolio.capital - 1.0)
    said = dict(console_rows(summary(run)))
    assert (said["Sharpe ratio, in sample"], said["Sharpe ratio, validation"]) == ("19.00", "-0.25")
    error = summary(run)["sharpe_error"]
    assert said["Sharpe ratio, out of sample"] == f"{ours['sharpe']:.2f} ± {error:.2f}"
    other = summary(dataclasses.replace(run, training={"valid_score": 0.5, "in_sample_sharpe": 19.0}))
    assert [row for row in dict(console_rows(other)) if "Sharpe" in row] == [
        "Sharpe ratio, in sample",
        "Sharpe ratio, out of sample",
    ]


def test_the_baselines_say_what_they_do() -> None:
    one, three = page(make_run(300)), page(make_run(300, THREE))
    for words in ("the sign of the return over 60 bars", "shuffled in time, with its band and its limits"):
        assert words in one
        assert words in three
    assert "Equal weight" not in one
    assert "rebalanced at every 60th decision" in three


def test_several_instruments_have_a_price_chart_each() -> None:
    outline = Outline(page(make_run(200, THREE, missing=0.1)))
    assert [title for title in outline.texts["h2"] if "price" in title] == [f"Trades on price: {i}" for i in THREE]
    assert outline.texts["h1"] == ["BTC/USDT, ETH/USDT, ADA/USDT 1m bars"]


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (0.0, "Backtest and live agree.</b> The same model"),
        (3.2e-12, "on any bar 3.2e-12"),
        (1e-6, "Backtest and live do not agree"),
    ],
)
def test_parity_is_judged(run: Run, difference: float, words: str) -> None:
    assert words in page(dataclasses.replace(run, summary={"parity_rel_diff": difference}))


def test_what_is_not_known_is_not_claimed(run: Run) -> None:
    html = page(dataclasses.replace(run, summary={}))
    assert "Perhaps in sample" in html
    assert "Backtest and live" not in html
    assert "<dt>Seed" not in html


# --- figures --------------------------------------------------------------------------------------


def test_performance_by_hand() -> None:
    returns = np.array([0.02, -0.01, 0.03, 0.0])
    equity = 100.0 * np.cumprod(np.append(1.0, 1.0 + returns))
    figures = performance(equity, 400.0)
    each = returns.mean() / returns.std(ddof=1)
    assert figures.total_return == pytest.approx(1.02 * 0.99 * 1.03 - 1.0)
    assert figures.max_drawdown == pytest.approx(0.01)
    assert figures.volatility == pytest.approx(returns.std(ddof=1) * 20.0)
    assert figures.sharpe == pytest.approx(each * 20.0)
    assert figures.sharpe_error == pytest.approx(math.sqrt((1.0 + each**2 / 2.0) / 4.0) * 20.0)


def test_a_curve_that_never_moves_has_no_sharpe_ratio() -> None:
    figures = performance(np.full(50, 7.0), 400.0)
    assert (figures.total_return, figures.max_drawdown, figures.sharpe, figures.volatility) == (0.0, 0.0, None, None)


def test_a_continuous_market_has_all_minutes_of_a_year(run: Run) -> None:
    assert bars_per_year(run.bars) == 365.25 * 24 * 60


def test_trading_adds_up(run: Run) -> None:
    figures = trading(run)
    assert figures.orders == figures.fills == figures.filled == len(run.fills)
    assert figures.fees == pytest.approx(figures.traded * 5e-4)
    assert figures.slippage == pytest.approx(figures.traded * 1e-4, rel=1e-3)
    assert figures.decisions == sum(not signal.hold for signal in run.signals) == 1500 - 16
    assert 0.0 < figures.exposure < 1.0 >= figures.in_market


# --- charts ---------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(length=st.integers(1001, 20_000), data=st.data())
def test_a_spike_survives(length: int, data: st.DataObject) -> None:
    values = np.zeros(length)
    spike = data.draw(st.integers(0, length - 1))
    values[spike] = 1.0
    chart = Chart("c", axis(length), 0.0, 1.0, "c", height=100)
    chart.line("policy", "p", values)
    path = re.findall(r' d="(.*?)"', chart.figure())[0]
    corners = points(path)
    assert min(y for _, y in corners) == 0
    assert abs(next(x for x, y in corners if y == 0) - 10_000 * (spike + 0.5) / length) <= 0.5
    assert len(corners) <= 2_002


def test_a_curve_starts_where_its_values_do() -> None:
    values = np.append(np.full(500, np.nan), np.ones(500))
    chart = Chart("c", axis(1000), 0.0, 2.0, "c")
    chart.line("price", "p", values)
    assert points(re.findall(r' d="(.*?)"', chart.figure())[0])[0] == (5005, 1300)
    assert chart.sampled()[0][:2] == ["", ""]


@given(length=st.integers(1, 3000), step=st.sampled_from([60, 900, 3600, 86_400]))
def test_the_time_axis_has_few_ticks_in_order(length: int, step: int) -> None:
    ticks = axis(length, step * 1_000_000).ticks
    assert len(ticks) <= 8
    assert [x for x, _ in ticks] == sorted({x for x, _ in ticks})
    assert all(0.0 < x < 1.0 and label for x, label in ticks)


def test_ticks_name_the_day_where_it_begins() -> None:
    ticks = axis(1500).ticks
    assert [label for _, label in ticks] == ["03:00", "06:00", "09:00", "12:00", "15:00", "18:00", "21:00", "4 Jan"]
    assert ticks[-1][0] == pytest.approx(1440 / 1500, abs=1e-3)


@pytest.mark.parametrize(
    ("low", "high", "percent", "expected"),
    [
        (94_000.0, 108_000.0, False, ["95,000", "97,500", "100,000", "102,500", "105,000", "107,500"]),
        (-0.13, 0.0, True, ["-12.5 %", "-10.0 %", "-7.5 %", "-5.0 %", "-2.5 %", "0.0 %"]),
        (1.5701, 1.5799, False, ["1.572", "1.574", "1.576", "1.578"]),
    ],
)
def test_the_value_axis_is_round(low: float, high: float, percent: bool, expected: list[str]) -> None:
    chart = Chart("c", axis(10), low, high, "c", percent=percent)
    labels = re.findall(r'px">(.*?)</span>', chart.figure())
    plain = str.maketrans({"\N{NARROW NO-BREAK SPACE}": " ", "\N{MINUS SIGN}": "-"})
    assert [label.translate(plain) for label in labels] == expected


def test_numbers_are_written_for_readers() -> None:
    assert text.number(-0.001, 2) == "0.00"
    assert text.number(-1234.5, 1) == "\N{MINUS SIGN}1,234.5"
    assert (text.price(46_319.04), text.price(1.57597), text.price(0.000123456)) == (
        "46,319.0",
        "1.57597",
        "0.000123456",
    )
    assert (text.money(99_999.6), text.money(9_999.6)) == ("100,000", "9,999.60")
    assert text.change(0.0123).startswith("+1.23")
    assert [text.span(60_000_000 * minutes) for minutes in (0, 1, 90, 1440, 13_500)] == [
        "0 minutes",
        "1 minute",
        "1 hour 30 minutes",
        "1 day",
        "9 days 9 hours",
    ]
    assert text.span(60_000_000 * 1440 * 4610) == "12.6 years"
    assert [text.count(n, "fill") for n in (0, 1, 1200)] == ["0 fills", "1 fill", "1,200 fills"]


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"alias": "candidate", "reason": "it lost <b>"}, "<b>A candidate, no champion</b>: it lost &lt;b&gt;."),
        ({"alias": "champion", "reason": ""}, "<b>The champion</b>."),
        ({"alias": "", "reason": "it won"}, "<b>Neither champion nor candidate by now</b>: it won."),
        ({"name": "edge-btc"}, None),
    ],
)
def test_whether_the_model_may_trade_is_told(run: Run, model: dict[str, str], says: str | None) -> None:
    html = page(dataclasses.replace(run, summary={**run.summary, "model": model, "learnt_from": ["From A & B"]}))
    assert (says or "<p") in html
    assert ("champion" in html) == (says is not None)
    assert "From A &amp; B." in html


def test_what_chose_the_checkpoint_is_told(run: Run) -> None:
    train_bars = run.summary["train_bars"]
    assert isinstance(train_bars, int)
    assert f"The policy was trained on the {train_bars:,} bars before this range." in page(run)
    html = page(dataclasses.replace(run, summary={**run.summary, "fitted_bars": 4321, "validation_bars": 100}))
    assert (
        "The policy was fitted on 4,321 bars before this range, those whose features are known; the 100 that followed "
        "chose the best of its checkpoints, and judged it. The traded bars had no part in that." in html
    )
    assert "<dt>Checkpoint chosen on</dt><dd>100 bars</dd>" in html
    none = page(dataclasses.replace(run, summary={**run.summary, "validation_bars": 0}))
    assert "They were too few to keep some of them apart" in none


def test_figures_of_the_training_have_words_for_names_and_its_halt_is_told(run: Run) -> None:
    training = {"in_sample_sharpe": 0.4, "in_sample_denied_halted": 7.0, "valid_errors_above_buy_and_hold": -0.5}
    halted = dataclasses.replace(run, training=training)
    html = page(halted)
    assert "Standard errors above buy and hold" in html
    assert "Denied: halted" in html
    assert "In sample the limits halted the book, which then traded no more." in html
    assert "errors_above" not in html
    assert dict(console_rows(summary(halted)))["Sharpe ratio, in sample"] == "0.40, halted by its limits"


def test_bars_that_the_policy_knew_are_told_where_a_reader_begins(run: Run) -> None:
    html = page(dataclasses.replace(run, summary={**run.summary, "trained_bars_among_these": 5}))
    assert f"It was trained on 5 of these {len(run.bars):,} bars, or chosen by them." in html.partition("</header>")[0]
    unseen = page(dataclasses.replace(run, summary={**run.summary, "trained_bars_among_these": 0}))
    assert "or chosen by them" not in unseen
