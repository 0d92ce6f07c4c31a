"""The tables of the report that say how far to trust a run."""

from __future__ import annotations

from html import escape

from tradeloop.cli.report import text
from tradeloop.cli.report.figures import SAMPLES, Evidence, remarks, samples
from tradeloop.cli.report.files import Run
from tradeloop.cli.report.trading import Trading
from tradeloop.common.evaluation.trades import TradeFigures

_PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
_METRICS = {
    "total_return": "Return",
    "sharpe": "Sharpe ratio",
    "max_drawdown": "Max drawdown",
    "fills": "Fills",
    "fees": "Fees",
    "reward": "Reward, summed up",
}


def luck(run: Run, found: Evidence) -> str:
    """Whether the policy did more than luck and the market did."""
    rows = [("p-value", _p_value(run, found))]
    if found.explained is None:
        rows += [("Alpha", _nothing("no returns to compare with those of buy and hold"))]
    else:
        e = found.explained
        rows += [
            (
                "Alpha to buy and hold",
                f"{text.change(e.alpha)} a year<small>{_PLUS_MINUS} {text.percent(e.alpha_error)}</small>",
            ),
            (
                "Beta to buy and hold",
                f"{text.number(e.beta, 3)}<small>{_PLUS_MINUS} {text.number(e.beta_error, 3)}</small>",
            ),
        ]
    count = found.trades.count
    rows.append(("Independent bets", f"{count:,} <small>positions opened or turned</small>"))
    several = " Bets of several instruments at one time may depend on each other." if _several(run) else ""
    cut = "blocks" if run.significance is None else _blocks(run.significance.blocks)
    note = (
        f"p-value: the share of shuffles of the policy's own decisions, cut into {cut}, that grew at least as much, the"
        " policy itself among them; they trade as often, at other times. Alpha and beta: least squares of the bars'"
        f" returns on those of buy and hold; {_PLUS_MINUS} is one standard error, for independent errors.{several}"
    )
    return f'{_table(rows)}<p class="note" style="margin-top:.5rem">{note}</p>'


def _several(run: Run) -> bool:
    return len(run.bars.instruments) > 1


def _blocks(count: int) -> str:
    return "one block that is rotated, since there are few trades" if count == 1 else f"{count} blocks"


def _p_value(run: Run, found: Evidence) -> str:
    if found.p_value is None:
        why = "the policy traded nothing" if not run.fills else "not tested"
        return _nothing(why)
    draws = f"{found.as_good} of {found.draws} shuffles did at least as well"
    halted = run.significance.halted if run.significance else 0
    if halted:
        draws += f"; {halted} were halted by the limits"
    return f"{text.number(found.p_value, 3)} <small>{draws}</small>"


def trip_table(t: TradeFigures) -> str:
    """Figures of the policy's round trips."""
    kept = f"<small>{t.still_open} still open, valued at the last close</small>" if t.still_open else ""
    rows = [("Round trips", f"{t.count:,} {kept}")]
    if t.count:
        rows += [
            ("Won", _share(t.win_rate)),
            ("Average win", _result(t.average_win, "none won")),
            ("Average loss", _result(t.average_loss, "none lost")),
            (
                "Profit factor",
                _nothing("no losses") if t.profit_factor is None else text.number(t.profit_factor, 2),
            ),
            ("Held for", _nothing("") if t.average_bars is None else f"{text.number(t.average_bars, 1)} bars"),
        ]
    note = (
        "From the opening of a position to its close or its turn to the other side; what is added or taken off in"
        " between is part of it. After fees, slippage and funding; wins and losses as shares of the equity at the"
        " opening, profit factor in quote currency."
    )
    return f'{_table(rows)}<p class="note" style="margin-top:.5rem">{note}</p>'


def sample_table(run: Run, traded: Trading) -> str:
    """Training and validation beside this run; empty where the training's metrics are unknown."""
    found = samples(run, traded)
    if not found:
        return ""
    names = {**SAMPLES, "out_of_sample": "This run"}
    metrics = [*(m for m in _METRICS if any(m in one for one in found.values()))]
    metrics += sorted({metric for one in found.values() for metric in one} - set(metrics))
    head = "".join(f"<th>{names[sample]}</th>" for sample in found)
    body = "".join(
        f'<tr><th scope="row">{escape(_metric_name(metric))}</th>'
        + "".join(f"<td>{_metric(metric, one.get(metric))}</td>" for one in found.values())
        + "</tr>"
        for metric in metrics
    )
    note = (
        "A policy that does much better on what it was trained on than here has probably memorised it. The ranges"
        " differ in length: compare the Sharpe ratios before the returns."
    )
    if "valid" in found:
        note += " Validation: bars after those that it was fitted on, by which the best of its checkpoints was chosen."
    for sample in found:
        if sample in SAMPLES and found[sample].get("denied_halted"):
            note += f" {names[sample]} the limits halted the book, which then traded no more."
    return (
        f'<figure><h2>Training beside this run</h2><div class="wide"><table class="plain"><thead><tr><th></th>{head}'
        f'</tr></thead><tbody>{body}</tbody></table></div><p class="note" style="margin-top:.5rem">{note}</p></figure>'
    )


def baseline_remarks(run: Run) -> str:
    """Sentences on baselines that were halted or could not buy (HTML)."""
    return " ".join(f"<b>{escape(said)}</b>" for said in remarks(run.baselines))


def _metric_name(metric: str) -> str:
    if metric.startswith("denied_"):
        return f"Denied: {metric.removeprefix('denied_')}"
    if metric.startswith("errors_above_"):
        return f"Standard errors above {metric.removeprefix('errors_above_').replace('_', ' ')}"
    return _METRICS.get(metric, metric)


def _metric(name: str, value: float | None) -> str:
    if value is None:
        return text.NOTHING
    if name == "total_return":
        return text.change(value)
    if name == "max_drawdown":
        return text.percent(value)
    if value == int(value) and name != "sharpe":
        return text.number(value, 0)
    return text.number(value, 2)


def _share(value: float | None) -> str:
    return text.NOTHING if value is None else text.percent(value, 0)


def _result(value: float | None, otherwise: str) -> str:
    return _nothing(otherwise) if value is None else text.change(value)


def _nothing(why: str) -> str:
    return f"{text.NOTHING} <small>{why}</small>" if why else text.NOTHING


def _table(rows: list[tuple[str, str]]) -> str:
    body = "".join(f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' for name, value in rows)
    return f'<table class="plain"><tbody>{body}</tbody></table>'
