"""The page of `tradeloop features report`: each feature beside the returns that follow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from tradeloop.cli.report import text
from tradeloop.common.arrays import Floats
from tradeloop.common.evaluation.information import SPANS, Coefficient, FeatureFacts

_CLEAR = 0.05
"""An adjusted p-value below this is marked."""
SUSPICIOUS = 0.3
"""A rank coefficient above this is rather a leak than a find."""
_STYLE = """
.heat td, .heat th + th { text-align: center; padding-inline: .45rem; }
tbody td:nth-child(n) { font-weight: 400; } tbody td.clear:nth-child(n) { font-weight: 700; }
.heat td { background: color-mix(in srgb, var(--c) calc(100% * var(--w)), transparent); }
.up { --c: var(--policy); } .down { --c: var(--hold); }
@media (max-width: 44rem) {
  body { padding-inline: 1rem; }
  th, td { padding-left: .55rem; }
  table { font-size: .84rem; } .heat td, .heat th + th { padding-inline: .25rem; }
  .wide th:first-child { position: sticky; left: 0; padding-right: .4rem; background: var(--page); }
  thead th { white-space: normal; }
  tbody th { max-width: 8.5rem; white-space: normal; }
}
"""


def features_page(heading: tuple[str, str], lede: str, facts: Sequence[FeatureFacts], beside: Floats) -> str:
    """The whole page; `beside` (F, F) has the correlations of the features."""
    whole = files("tradeloop.cli.report").joinpath("template.html").read_text(encoding="utf-8")
    style = whole[whole.index("<style>") + 7 : whole.index("</style>")].replace("$$", "$")
    horizons = [c.horizon for c in facts[0].coefficients]
    sections = [
        (
            "Rank information coefficient by horizon",
            _table(
                ["feature", *map(_bars, horizons)],
                [[_name(one.name), *map(_coefficient, one.coefficients)] for one in facts],
            ),
            "Rank correlation of a feature at a close with the log return of the next bars, pooled over instruments. "
            "± is a standard error after Newey and West, with twice the horizon as lags, since such returns overlap. "
            f"Bold: a p-value below {_CLEAR:g} after Holm's adjustment for all {len(facts) * len(horizons)} tests of "
            "this page. Testing other features, horizons or ranges until something is bold is a test as well.",
        ),
        (
            "By itself",
            _table(
                ["feature", "missing", "auto&shy;correlation", *(f"IC, {_bars(h)}" for h in horizons)],
                [
                    [
                        _name(one.name),
                        text.percent(one.missing, 1),
                        _number(one.autocorrelation, 2),
                        *(_number(c.ic, 3) for c in one.coefficients),
                    ]
                    for one in facts
                ],
            ),
            "Missing counts the warm-up. A feature with an autocorrelation near 1 makes few independent statements. IC "
            "is the plain correlation.",
        ),
        (
            f"Stability: the rank coefficient at {_bars(horizons[0])}, in {SPANS} equal parts of time",
            _table(
                ["feature", *map(str, range(1, SPANS + 1)), "same sign"],
                [
                    [_name(one.name), *(_cell(span, 0.2) for span in first.spans), _steady(first)]
                    for one in facts
                    for first in one.coefficients[:1]
                ],
                "heat",
            ),
            "A coefficient that lives in one part of time is rather an event than an edge.",
        ),
        (
            "Correlation of features",
            _table(
                ["", *map(str, range(1, len(facts) + 1))],
                [
                    [f"{i + 1} {_name(one.name)}", *(_cell(value, 1.0) for value in beside[i].tolist())]
                    for i, one in enumerate(facts)
                ],
                "heat",
            ),
            "Rank correlations, where all features are known. Two features that are nearly the same say it once.",
        ),
    ]
    body = "".join(
        f'<section class="figures"><div class="whole"><h2>{title}</h2><div class="wide">{table}</div>'
        f'<p class="note" style="margin-top:.5rem">{note}</p></div></section>'
        for title, table, note in sections
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(heading[0])} features</title>\n<style>{style}{_STYLE}</style>\n</head>\n<body>\n<header>\n"
        f"<h1>{escape(heading[0])} <small>{escape(heading[1])}</small></h1>\n"
        f'<p class="lede">{escape(lede)}</p>\n</header>\n{body}\n</body>\n</html>\n'
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    top = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f'<table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def _bars(count: int) -> str:
    return f"{count} {'bar' if count == 1 else 'bars'}"


def _name(feature: str) -> str:
    """A name that may be broken behind its parts."""
    return escape(feature).replace("_", "_<wbr>")


def _coefficient(c: Coefficient) -> str:
    if math.isnan(c.rank_ic):
        return text.NOTHING
    clear = ' class="clear"' if c.adjusted < _CLEAR else ""
    return f"<td{clear}>{_number(c.rank_ic, 3)}<small>\N{PLUS-MINUS SIGN} {_number(c.error, 3)}</small></td>"


def _cell(value: float, full: float) -> str:
    if math.isnan(value):
        return text.NOTHING
    weight = min(1.0, abs(value) / full) * 0.6
    return f'<td class="{"up" if value >= 0 else "down"}" style="--w:{weight:.2f}">{_number(value, 2)}</td>'


def _steady(c: Coefficient) -> str:
    known = [span for span in c.spans if not math.isnan(span)]
    same = sum(span * c.rank_ic > 0.0 for span in known)
    return f"{same} of {len(known)}" if known else text.NOTHING


def _number(value: float, decimals: int) -> str:
    return text.NOTHING if math.isnan(value) else text.number(value, decimals)
