"""The HTML page: what was traded, what came of it beside the baselines, and how far to trust it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from string import Template

from tradeloop.cli.report import happened, text
from tradeloop.cli.report.charts import TimeAxis
from tradeloop.cli.report.evidence import baseline_remarks, luck, sample_table, trip_table
from tradeloop.cli.report.figures import evidence
from tradeloop.cli.report.files import Run
from tradeloop.cli.report.panels import curve_class, curve_name, curves, panels
from tradeloop.cli.report.trading import Trading, trading
from tradeloop.common.arrays import Floats
from tradeloop.common.evaluation.baselines import LOOKBACK, REBALANCE
from tradeloop.common.evaluation.parity import TOLERANCE
from tradeloop.common.evaluation.performance import Performance, bars_per_year, performance
from tradeloop.common.market import to_us
from tradeloop.common.messages import RiskVerdict
from tradeloop.common.risk import WARN_DENIED


def page(run: Run) -> str:
    """The whole page."""
    heading, traded, found = _heading(run), trading(run), evidence(run)
    equity, per_year = curves(run), bars_per_year(run.bars)
    charts = panels(run)
    axis = TimeAxis(run.bars.close_us)
    samples = axis.samples()
    data = {
        "at": [round(axis.x(float(bar)), 5) for bar in samples],
        "times": [f"{text.time(time)} UTC" for time in run.bars.close_us[samples]],
        "charts": {chart.name: chart.sampled() for chart in charts},
    }
    template = Template(files("tradeloop.cli.report").joinpath("template.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(f"{heading[0]} {heading[1]}"),
        heading=f"{escape(heading[0])} <small>{escape(heading[1])}</small>",
        lede=_lede(run, equity, traded),
        standing=_standing(run.summary),
        facts="".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in _facts(run)),
        performance=_performance(equity, per_year),
        convention=(
            f"Sharpe ratio and volatility: of the bars' returns, annualised with {per_year:,.0f} bars a year (bars seen"
            " over the time they took), risk-free rate 0. ± is one standard error, for independent returns. "
            f"{baseline_remarks(run)}"
        ),
        trading=_trading(run, traded),
        luck=luck(run, found),
        trips=trip_table(found.trades),
        beside=sample_table(run, traded),
        parity=_parity(run.summary),
        charts="".join(chart.figure() for chart in charts),
        verdicts=happened.table(run) + _verdicts(run),
        care="".join(f"<li>{line}</li>" for line in _care(run, equity, per_year)),
        # An angle bracket could end the element that the data lies in.
        samples=json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _heading(run: Run) -> tuple[str, str]:
    universe = run.portfolio.universe
    symbols = [instrument.partition(":")[2] for instrument in universe.ids]
    traded = ", ".join(symbols) if len(symbols) <= 4 else f"{len(symbols)} instruments"
    return traded, f"{universe.timeframe} bars"


def _lede(run: Run, equity: Mapping[str, Floats], t: Trading) -> str:
    length = text.span(int(run.bars.close_us[-1] - run.bars.open_us[0]))
    returned = {name: text.change(float(curve[-1] / curve[0] - 1.0)) for name, curve in equity.items()}
    versus = f"; buy and hold {returned['buy_and_hold']}" if "buy_and_hold" in returned else ""
    halted = " It was halted by its risk limits." if run.marks[-1].state == "halted" else ""
    more = f"{_seen(run)}{halted}{_chance(run, t)}{_denied(t)}"
    return f"The policy returned {returned['policy']} over {length}{versus}.{more}"


def _seen(run: Run) -> str:
    """A warning, where the policy knew some of the bars."""
    seen = run.summary.get("trained_bars_among_these")
    if not isinstance(seen, int) or not seen:
        return ""
    return f" It was trained on {seen:,} of these {text.count(len(run.bars), 'bar')}, or chosen by them."


def _standing(summary: Mapping[str, object]) -> str:
    """Whether the model may trade, and why, where that is known; and the markets that it learnt from."""
    lines, model = [], summary.get("model")
    if isinstance(model, Mapping) and "alias" in model:
        alias = {"champion": "The champion", "candidate": "A candidate, no champion"}.get(str(model["alias"]))
        reason = f": {escape(str(model['reason']))}" if model.get("reason") else ""
        lines.append(f"<b>{alias or 'Neither champion nor candidate by now'}</b>{reason}.")
    found = summary.get("learnt_from")
    lines += [f"{escape(str(line))}." for line in found] if isinstance(found, list) else []
    return f'<p class="note" style="margin-top:.5rem">{" ".join(lines)}</p>' if lines else ""


def _chance(run: Run, t: Trading) -> str:
    """Whether the policy's timing was any good, or what it did instead of trading."""
    found = run.significance
    if not run.fills:
        small = " Each position that it wanted was too small for an order: give it more capital." if t.unsized else ""
        return f" It traded nothing.{small}"
    if found is None:
        return ""
    as_good = int((found.draws >= found.growth).sum())
    return (
        f" Its own decisions, shuffled in time, did at least as well {text.count(as_good, 'time')} out of"
        f" {len(found.draws):,} (p = {text.number(found.p_value, 3)})."
    )


def _denied(t: Trading) -> str:
    """A warning, where the policy could often not trade as it decided."""
    if t.denied <= WARN_DENIED * t.decisions:
        return ""
    share = text.percent(t.denied / t.decisions, 1)
    return f" The risk gate denied orders of {share} of its decisions: it did not trade as it decided."


def _facts(run: Run) -> list[tuple[str, str]]:
    """Names and values (HTML)."""
    bars, portfolio, strategy = run.bars, run.portfolio, run.strategy
    identities = dict.fromkeys((s.model, s.model_version, s.model_id) for s in run.signals if s.model_id)
    models = [
        f"{escape(name)} v{escape(version)} <small>{escape(id_[:12])}</small>" for name, version, id_ in identities
    ]
    facts = [
        ("Data", escape(run.source)),
        ("Traded", f"{text.time(int(bars.open_us[0]))}<br>to {text.time(int(bars.close_us[-1]))} UTC"),
        ("Bars traded", f"{len(bars):,}"),
        ("Strategy", f"{escape(strategy.name)} <small>{escape(strategy.algorithm)}</small>"),
        ("Model", "<br>".join(models) or text.NOTHING),
        ("Capital", text.money(portfolio.capital)),
        ("Portfolio", f"{escape(portfolio.name)} <small>{portfolio.mode}</small>"),
    ]
    train_bars, seed = run.summary.get("train_bars"), run.summary.get("seed")
    fitted, kept = (run.summary.get(name) for name in ("fitted_bars", "validation_bars"))
    if isinstance(fitted, int) and isinstance(kept, int):
        facts[2:2] = [("Bars fitted on", f"{fitted:,}"), ("Checkpoint chosen on", text.count(kept, "bar"))]
    elif isinstance(train_bars, int):
        facts.insert(2, ("Bars trained on", f"{train_bars:,}"))
    if isinstance(seed, int):
        facts.append(("Seed", str(seed)))
    if universe := run.summary.get("universe"):
        facts.insert(1, ("Universe", escape(str(universe))))
    return facts


def _performance(equity: Mapping[str, Floats], per_year: float) -> str:
    """One column a curve."""
    all_figures = [performance(curve, per_year) for curve in equity.values()]
    rows: list[tuple[str, list[str]]] = [
        ("Final equity", [text.money(f.final) for f in all_figures]),
        ("Return", [text.change(f.total_return) for f in all_figures]),
        ("Max drawdown", [text.percent(f.max_drawdown) for f in all_figures]),
        ("Volatility", [text.NOTHING if f.volatility is None else text.percent(f.volatility, 1) for f in all_figures]),
        ("Sharpe ratio", [_sharpe(f) for f in all_figures]),
    ]
    names = ((curve_class(name), escape(curve_name(name))) for name in equity)
    head = "".join(f'<th scope="col"><span class="{kind}"><i></i><b>{name}</b></span></th>' for kind, name in names)
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for name, cells in rows
    )
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"


def _sharpe(figures: Performance) -> str:
    if figures.sharpe is None or figures.sharpe_error is None:
        return text.NOTHING
    return f"{text.number(figures.sharpe, 2)}<small>\N{PLUS-MINUS SIGN} {text.number(figures.sharpe_error, 2)}</small>"


def _trading(run: Run, t: Trading) -> str:
    fees, slippage = (text.percent(cost / run.portfolio.capital) for cost in (t.fees, t.slippage))
    short = t.orders - t.filled
    whole = f"{short:,} of them not filled in whole" if short else "all filled in whole" if t.orders else ""
    denied = ", ".join(f"{escape(code)} {count:,}" for code, count in sorted(t.denials.items()))
    rows = [
        ("Decisions", f"{t.decisions:,} <small>on {len(run.bars):,} bars</small>"),
        ("Orders", f"{t.orders:,} <small>{whole}</small>"),
        ("Denied", f"{sum(t.denials.values()):,} <small>{denied or 'by the risk gate'}</small>"),
        *(
            [("Too small", f"{t.unsized:,} <small>targets below a lot, or below the smallest order</small>")]
            if t.unsized
            else []
        ),
        ("Turnover", f"{text.number(t.turnover, 1)}\N{MULTIPLICATION SIGN} equity"),
        ("Fees", f"{text.money(t.fees)} <small>{fees} of capital</small>"),
        ("Slippage", f"{text.money(t.slippage)} <small>{slippage} of capital</small>"),
        (
            "Exposure",
            f"{text.percent(t.exposure, 1)} <small>in the market on {text.percent(t.in_market, 1)} of bars</small>",
        ),
    ]
    body = "".join(f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' for name, value in rows)
    return f'<table class="plain"><tbody>{body}</tbody></table>'


def _parity(summary: Mapping[str, object]) -> str:
    difference = summary.get("parity_rel_diff")
    if not isinstance(difference, (int, float)):
        return ""
    good = difference <= TOLERANCE
    found = "0: equal to the last bit" if difference == 0.0 else f"{difference:.1e}".replace("e-0", "e-")
    what = "Backtest and live agree." if good else "Backtest and live do not agree: trust neither."
    return (
        f'<p class="check {"good" if good else "bad"}"><b>{what}</b> The same model over the same bars, vectorised and'
        f" through the services; largest relative difference of equity on any bar {found} (tolerance 1e-9).</p>"
    )


def _verdicts(run: Run) -> str:
    """Denials and halts, by kind."""
    kinds: dict[tuple[str, str], list[RiskVerdict]] = {}
    for verdict in run.verdicts:
        kinds.setdefault((verdict.code, verdict.instrument), []).append(verdict)
    if not kinds:
        return ""
    rows = "".join(
        f'<tr><td>{escape(code)}</td><td>{escape(instrument) or text.NOTHING}</td><td class="n">{len(found):,}</td>'
        f"<td>{text.time(to_us(found[0].time))}</td><td>{text.time(to_us(found[-1].time))}</td>"
        f"<td>{escape(found[-1].text)}</td></tr>"
        for (code, instrument), found in sorted(kinds.items())
    )
    head = '<th>Code</th><th>Instrument</th><th class="n">Times</th><th>First</th><th>Last</th><th>Last measured</th>'
    return (
        '<figure><h2>Risk verdicts</h2><div class="wide"><table class="text"><thead><tr>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div></figure>"
    )


def _care(run: Run, equity: Mapping[str, Floats], per_year: float) -> list[str]:
    """The assumptions behind the figures (HTML)."""
    train_bars, seen = run.summary.get("train_bars"), run.summary.get("trained_bars_among_these")
    if isinstance(seen, int):
        sample = (
            f"<b>In sample, in part.</b> The policy was trained on {seen:,} of these bars, or chosen by them: there it"
            " shows what it remembers, not what it is worth."
            if seen
            else "<b>Out of sample.</b> The policy was trained on none of these bars, nor chosen by one. If you choose"
            " among models by this report, the range is no longer unseen."
        )
    elif isinstance(train_bars, int):
        sample = _out_of_sample(train_bars, run.summary)
    else:
        sample = (
            "<b>Perhaps in sample.</b> What the policy was trained on is not recorded here. If it has seen these bars,"
            " the figures say nothing about others."
        )
    error = performance(equity["policy"], per_year).sharpe_error
    luck = (
        ""
        if error is None
        else (
            f" By luck alone, a policy without any edge is off by ±{text.number(error, 2)} in the Sharpe ratio over so"
            " many bars, one time in three by more."
        )
    )
    costs = run.portfolio.costs
    fees = {instrument.taker_bps * costs.fee_multiplier for instrument in run.portfolio.universe.instruments}
    fee = " to ".join(f"{bps:g}" for bps in sorted({min(fees), max(fees)}))
    impact = f"impact of {costs.impact_bps:g} bps for a whole bar's volume" if costs.impact_bps else "no market impact"
    size = "as much volume as it asks for"
    if costs.max_participation:
        size = f"at most {text.percent(costs.max_participation, 0)} of the bar's volume"
    uncharged = costs.uncharged(run.bars)
    return [
        sample,
        f"<b>One seed and one split prove nothing.</b> Another seed may give another policy.{luck} Count what you try:"
        " the best of many tries looks good by chance.",
        f"<b>Costs are assumed.</b> Fees of {fee} bps, slippage of {costs.slippage_bps:g} bps, {impact}. An order fills"
        f" at the next bar's open, {size}; a real venue may fill later, worse, or not at all."
        + (f" <b>{escape(uncharged[0].upper() + uncharged[1:])}.</b>" if uncharged else ""),
        _baselines(run),
    ]


def _out_of_sample(train_bars: int, summary: Mapping[str, object]) -> str:
    """The parts of the history that had a share in the policy (HTML)."""
    learnt = f"The policy was trained on the {text.count(train_bars, 'bar')} before this range."
    fitted, kept = (summary.get(name) for name in ("fitted_bars", "validation_bars"))
    if kept == 0:
        learnt += " They were too few to keep some of them apart, by which the best of its checkpoints is chosen."
    elif isinstance(fitted, int) and isinstance(kept, int):
        learnt = (
            f"The policy was fitted on {fitted:,} bars before this range, those whose features are known; the"
            f" {kept:,} that followed chose the best of its checkpoints, and judged it."
        )
    if summary.get("learnt_from"):
        learnt += " The other markets were cut and held out alike; these numbers are of this one."
    return (
        f"<b>Out of sample, once.</b> {learnt} The traded bars had no part in that. If you change anything because of"
        " this report and run again, the range is no longer unseen."
    )


def _baselines(run: Run) -> str:
    """The rules of the baselines that there are (HTML)."""
    draws = len(run.significance.draws) if run.significance else 0
    known = {
        "buy_and_hold": "Buy and hold puts all equity in at the first decision, in equal parts, and leaves it there.",
        "equal_weight": f"Equal weight is the same, rebalanced at every {REBALANCE}th decision.",
        "momentum": f"Momentum follows the sign of the return over {LOOKBACK} bars, and is short only where the"
        " policy may be.",
        "random": "Random is the policy's own decisions, shuffled in time, with its band and its limits: the middle one"
        f" of {draws:,} shuffles.",
    }
    what = " ".join(known[name] for name in known if name in run.baselines)
    return (
        "<b>Baselines pay the same.</b> They trade through the same simulator and costs. Random apart, no no-trade"
        f" band, limit of size or halt for drawdown stands in their way. {what}"
    )
