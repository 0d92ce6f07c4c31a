from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from tradeloop.common.market import Timeframe
from tradeloop.common.market.faults import faults

Columns = dict[str, NDArray[np.float64] | NDArray[np.int64]]
BARS = 60


def sound() -> Columns:
    rng = np.random.default_rng(3)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, BARS)))
    opened = np.r_[100.0, close[:-1]]
    return {
        "open_us": np.arange(BARS, dtype=np.int64) * Timeframe.H1.us,
        "open": opened,
        "high": np.maximum(opened, close) * 1.001,
        "low": np.minimum(opened, close) * 0.999,
        "close": close,
        "volume": rng.uniform(1, 2, BARS),
    }


def put(name: str, row: int, value: float) -> Callable[[Columns], None]:
    def change(bars: Columns) -> None:
        bars[name][row] = value

    return change


def scaled(start: int, factor: float) -> Callable[[Columns], None]:
    def change(bars: Columns) -> None:
        for name in ("open", "high", "low", "close"):
            bars[name][start:] *= factor

    return change


def repeated(start: int, count: int) -> Callable[[Columns], None]:
    def change(bars: Columns) -> None:
        for name in bars:
            if name != "open_us":
                bars[name][start : start + count] = bars["close"][start] if name != "volume" else 1.5

    return change


def without(row: int) -> Callable[[Columns], None]:
    def change(bars: Columns) -> None:
        for name in bars:
            bars[name] = bars[name][np.arange(BARS) != row]

    return change


@pytest.mark.parametrize(
    ("change", "row", "kind", "what"),
    [
        pytest.param(put("open", 5, 0.0), 5, "price", "open is 0.0", id="zero"),
        pytest.param(put("low", 5, -1.0), 5, "price", "low is -1.0", id="negative"),
        pytest.param(put("close", 5, np.nan), 5, "price", "close is nan", id="not a number"),
        pytest.param(put("high", 5, 1.0), 5, "range", "high 1.0 is below low", id="high below low"),
        pytest.param(put("volume", 5, -2.0), 5, "volume", "volume is -2.0", id="volume"),
        pytest.param(put("open_us", 5, 4 * Timeframe.H1.us), 5, "time", "comes twice", id="twice"),
        pytest.param(put("open_us", 5, Timeframe.H1.us), 5, "time", "comes after a later time", id="order"),
        pytest.param(put("open_us", 5, 4.5 * Timeframe.H1.us), 5, "time", "opens inside the bar before", id="overlap"),
        pytest.param(without(5), 5, "gap", "1 bar missing before it", id="gap"),
        pytest.param(put("high", 5, 1e6), 5, "outlier", "high 1000000.0 between closes of", id="spike"),
        pytest.param(repeated(20, 12), 20, "stale", "12 bars from here on are equal", id="stale"),
        pytest.param(scaled(30, 0.25), 30, "split", "a split of 4 for 1?", id="split"),
        pytest.param(scaled(30, 10.0), 30, "split", "a split of 1 for 10?", id="reverse split"),
    ],
)
def test_each_fault_is_named_with_its_row(change: Callable[[Columns], None], row: int, kind: str, what: str) -> None:
    bars = sound()
    assert faults(bars, Timeframe.H1, "continuous") == []
    change(bars)
    found = [fault for fault in faults(bars, Timeframe.H1, "continuous") if fault.kind == kind]
    assert [(fault.row, fault.open_us) for fault in found] == [(row, int(bars["open_us"][row]))]
    assert what in found[0].what


def test_all_faults_are_found_and_not_the_first_alone() -> None:
    bars = sound()
    for row in (3, 7, 50):
        bars["open"][row] = 0.0
    scaled(30, 0.5)(bars)
    assert [(fault.row, fault.kind) for fault in faults(bars, Timeframe.H1, "continuous")] == [
        (3, "price"),
        (7, "price"),
        (30, "split"),
        (50, "price"),
    ]


def test_what_a_market_does_is_no_fault() -> None:
    """A crash that stays, and quiet bars."""
    bars = sound()
    scaled(30, 0.7)(bars)
    repeated(10, 9)(bars)
    assert faults(bars, Timeframe.H1, "continuous") == []
