"""Every reward that a user is shown, or gets without asking, at the end of a book that lost all that it had."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import linecache
from collections import defaultdict
from string import Template
from typing import Any

import numpy as np
import pytest

from example_strategy import strategy as example
from tests.test_docs import PAGES, ROOT, blocks
from tradeloop.cli.commands import strategy as commands
from tradeloop.common.strategy import Strategy
from tradeloop.common.strategy.rewards import (
    LEAST_EQUITY,
    Reward,
    RewardContext,
    RewardEngine,
    RewardError,
    reward_id,
)

CAPITAL = 100_000.0


def rewards_of(*sources: str) -> dict[str, Reward]:
    """The rewards that texts define, by name: those of their strategies, and any other."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()):
        for n, source in enumerate(sources):
            name = f"<text {n} of {hash(sources):x}>"
            # Where `inspect` finds it again: a feature's identity is its source.
            linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
            exec(compile(source, name, "exec", dont_inherit=True), namespace)
    found: dict[str, Reward] = {}
    for name, value in namespace.items():
        one: Any = value.reward if isinstance(value, Strategy) else value
        with contextlib.suppress(RewardError, TypeError, AttributeError):
            one = one() if isinstance(one, type) and dataclasses.is_dataclass(one) else one
            reward_id(one)
            found[name] = one
    return found


def documented() -> dict[str, Reward]:
    template = rewards_of(Template(commands._STRATEGY).substitute(name="mine"))
    found = {"example": example.reward, **{f"template {name}": one for name, one in template.items()}}
    for page in PAGES:
        text = page.read_text()
        if "reward" in text:
            sources = [body for language, _, body in blocks(text) if language == "python"]
            found |= {f"{page.relative_to(ROOT)} {name}": one for name, one in rewards_of(*sources).items()}
    return found


def ruined() -> RewardContext:
    """What rewards see of three books: one that is lost in this bar, one that was before, and one at rest."""
    least = CAPITAL * LEAST_EQUITY
    books = {
        "equity_prev": [CAPITAL, least, CAPITAL],
        "equity": [least, least, CAPITAL],
        "drawdown": [1.6, 1.6, 0.0],
        "turnover": [1.0, 1e9, 0.0],
        "traded_notional": [CAPITAL, CAPITAL, 0.0],
        "fees": [50.0, 50.0, 0.0],
        "slippage": [10.0, 10.0, 0.0],
        "funding": [0.0, 0.0, 0.0],
        "unrealised": [-1.6 * CAPITAL, 0.0, 0.0],
        "ts_prev": [0, 0, 0],
        "ts": [60_000_000] * 3,
        "terminated": [True, True, False],
        "truncated": [False] * 3,
    }
    each = {"position_prev": -1000.0, "position": 0.0, "price_prev": 100.0, "price": 260.0, "holding_bars": 3.0}
    columns: dict[str, Any] = {name: np.array(values) for name, values in books.items()}
    columns |= {name: np.full((3, 1), value) for name, value in each.items()}
    return RewardContext(action=np.full((3, 1), -1.0), features=defaultdict(lambda: np.full((3, 1), 0.1)), **columns)


def test_C2_every_documented_reward_survives_an_equity_of_zero_or_less() -> None:
    rewards = documented()
    assert {"example", "template strategy", "template Growth"} <= rewards.keys()
    assert any(name.startswith("docs/strategy-authors.md") for name in rewards)
    for name, one in rewards.items():
        engine = RewardEngine(one, 3)
        for _ in range(3):
            assert np.isfinite(engine(ruined())).all(), name


def test_C2_a_reward_that_does_not_is_found() -> None:
    text = (ROOT / "strategies" / "example" / "src" / "example_strategy" / "__init__.py").read_text()
    broken = rewards_of(text.replace("c.equity / c.equity_prev", "c.equity / c.equity_prev - 0.5"))["strategy"]
    with pytest.raises(RewardError, match="not finite in pnl"), np.errstate(invalid="ignore"):
        RewardEngine(broken, 3)(ruined())
