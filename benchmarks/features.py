"""Twenty features over a million minutes in a batch, against the bare calls; and bar by bar, without a store."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import talib as library

from benchmarks.measure import Row, in_turns, report
from tradeloop.common.arrays import Floats
from tradeloop.common.features import (
    FeatureSet,
    FeatureStream,
    change,
    log_return,
    ratio,
    relative,
    rolling,
    simple_return,
    talib,
    vectorised,
    volatility,
    windowed,
    zscore,
)
from tradeloop.common.market import BarArrays, Timeframe, align

BARS, STREAMED, PLAIN, ROUNDS = 1_000_000, 20_000, 100_000, 3
START_US = 1_600_000_020_000_000


def reach(close: Floats) -> Floats | float:
    """An author's function: the close over the mean of its window, in its range."""
    found: Floats | float = (close[-1] - close.mean(axis=0)) / (close.max(axis=0) - close.min(axis=0) + 1e-9)
    return found


FEATURES = [
    log_return(1),
    log_return(15),
    simple_return(60),
    *(talib("RSI", timeperiod=period) for period in (7, 14)),
    talib("MACD", output="macdhist"),
    talib("ATR", timeperiod=14),
    talib("ADX", timeperiod=14),
    talib("MFI", timeperiod=14),
    talib("CCI", timeperiod=20),
    talib("BBANDS", output="upperband"),
    *(relative(talib("EMA", timeperiod=period)) for period in (20, 60)),
    volatility(20),
    volatility(20, "parkinson"),
    zscore(log_return(1), 20),
    rolling("mean", simple_return(1), 30),
    change(talib("RSI", timeperiod=14), 5),
    ratio(talib("ATR", timeperiod=5), talib("ATR", timeperiod=20)),
    vectorised("reach", reach, 20),
]


def made_up(count: int) -> BarArrays:
    """Minutes of a random walk."""
    rng = np.random.default_rng(0)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 1e-4, count)))
    opened = np.r_[100.0, close[:-1]]
    series = {
        "open_us": START_US + np.arange(count, dtype=np.int64) * Timeframe.M1.us,
        "open": opened,
        "high": np.maximum(opened, close) * (1.0 + rng.exponential(1e-5, count)),
        "low": np.minimum(opened, close) * (1.0 - rng.exponential(1e-5, count)),
        "close": close,
        "volume": rng.exponential(10.0, count),
    }
    return align(["venue:X/USD"], Timeframe.M1, [series])


def bare(bars: BarArrays) -> list[Floats]:
    """The same twenty by TA-Lib and NumPy alone, each in one call over the whole series."""
    high, low, close, volume = (
        np.ascontiguousarray(getattr(bars, n)[:, 0]) for n in ("high", "low", "close", "volume")
    )
    windows = np.lib.stride_tricks.sliding_window_view
    steps = np.diff(np.log(close))
    of_close, of_steps = windows(close, 20), windows(steps, 20)
    rsi = library.RSI(close, 14)
    return [
        steps,
        np.log(close[15:] / close[:-15]),
        close[60:] / close[:-60] - 1.0,
        library.RSI(close, 7),
        rsi,
        library.MACD(close)[2],
        library.ATR(high, low, close, 14),
        library.ADX(high, low, close, 14),
        library.MFI(high, low, close, volume, 14),
        library.CCI(high, low, close, 20),
        library.BBANDS(close)[0],
        close / library.EMA(close, 20) - 1.0,
        close / library.EMA(close, 60) - 1.0,
        of_steps.std(axis=1, ddof=1),
        np.sqrt(windows(np.log(high / low) ** 2, 20).mean(axis=1) / (4.0 * np.log(2.0))),
        (steps[19:] - of_steps.mean(axis=1)) / of_steps.std(axis=1),
        windows(close[1:] / close[:-1] - 1.0, 30).mean(axis=1),
        rsi[5:] - rsi[:-5],
        library.ATR(high, low, close, 5) / library.ATR(high, low, close, 20),
        (of_close[:, -1] - of_close.mean(axis=1)) / (of_close.max(axis=1) - of_close.min(axis=1) + 1e-9),
    ]


def cpu_seconds(block: Callable[[], object]) -> float:
    """The CPU time that one call takes."""
    started = time.process_time()
    block()
    return time.process_time() - started


def measure() -> None:
    bars, features = made_up(BARS), FeatureSet(FEATURES)
    known = {Timeframe.M1: bars}
    batch_s: dict[str, list[float]] = {"ours": [], "bare": []}

    def timed(name: str, block: Callable[[], object]) -> None:
        batch_s[name].append(cpu_seconds(block))

    batch = in_turns(
        {
            "ours": (lambda: timed("ours", lambda: features.compute(known, Timeframe.M1)), BARS),
            "bare": (lambda: timed("bare", lambda: bare(bars)), BARS),
        },
        ROUNDS,
    )
    by_cpu = {name: BARS / statistics.median(taken[1:]) for name, taken in batch_s.items()}
    frames = [(int(bars.open_us[t]), int(bars.close_us[t]), features.frame(bars, t)) for t in range(STREAMED)]

    cpu_s: list[float] = []

    def stream() -> None:
        started = time.process_time()
        one = FeatureStream(features, Timeframe.M1, bars.instruments)
        for frame in frames:
            one.update(*frame)
        cpu_s.append(time.process_time() - started)

    streamed = in_turns({"ours": (stream, STREAMED)}, ROUNDS)
    some = {Timeframe.M1: bars.slice(0, PLAIN)}
    own = {
        "vectorised": FeatureSet([vectorised("reach", reach, 20)]),
        "windowed": FeatureSet([windowed("reach", reach, 20)]),
    }
    authored = in_turns(
        {name: (lambda one=one: one.compute(some, Timeframe.M1), PLAIN) for name, one in own.items()},  # type: ignore[misc]
        ROUNDS,
    )
    each = {
        one.name: cpu_seconds(lambda one=one: FeatureSet([one]).compute(known, Timeframe.M1))  # type: ignore[misc]
        for one in FEATURES
    }
    slowest = sorted(each, key=lambda name: -each[name])[:5]
    report(
        [
            Row(
                "20 features over a million minutes, batch",
                batch.rates["ours"],
                "bars/s",
                0.5,
                "at least",
                "bare TA-Lib and NumPy calls",
                batch.rates["bare"],
                batch.ratio("ours", "bare"),
            ),
            Row(
                "the same, both by CPU time",
                by_cpu["ours"],
                "bars/s",
                0.5,
                "at least",
                "bare TA-Lib and NumPy calls",
                by_cpu["bare"],
                statistics.median(b / a for a, b in list(zip(batch_s["ours"], batch_s["bare"], strict=True))[1:]),
            ),
            Row("the same bar by bar, without a store", streamed.rates["ours"], "bars/s", None),
            Row("the same, by CPU time", STREAMED / statistics.median(cpu_s[1:]), "bars/s", 8_000.0),
            Row(
                "an author's function over 20 bars, vectorised",
                authored.rates["vectorised"],
                "bars/s",
                None,
                "at least",
                "windowed, a call a bar",
                authored.rates["windowed"],
                authored.ratio("vectorised", "windowed"),
            ),
        ],
        [
            f"One instrument; {ROUNDS} rounds in turns. The bare calls run once over the whole series; ours restart "
            "recursive indicators at anchors, and add in one order, so that batch, stream and recovery agree to the "
            "last bit.",
            "The slowest five, seconds of CPU over a million bars: "
            + ", ".join(f"{name} {each[name]:.2f}" for name in slowest)
            + ".",
        ],
    )


if __name__ == "__main__":
    measure()
