"""Longer bars in the stream, frame by frame, beside polars' `group_by_dynamic` over all bars at once."""

from __future__ import annotations

import statistics
import time

import polars as pl

from benchmarks.features import made_up
from benchmarks.measure import Row, in_turns, report
from tradeloop.common.market import Instrument, Timeframe, Universe
from tradeloop.ingest.domain import Resampler, frames

BARS, ROUNDS = 100_000, 5
HIGHER = (Timeframe.M5, Timeframe.M15, Timeframe.H1, Timeframe.H4, Timeframe.D1)


def measure() -> None:
    bars = made_up(BARS)
    [name] = bars.instruments
    universe = Universe(
        name="bench", instruments=(Instrument(id=name),), timeframe=Timeframe.M1, higher_timeframes=HIGHER
    )
    base = list(frames(universe.name, Timeframe.M1, bars))
    series = {field: getattr(bars, field)[:, 0] for field in ("open", "high", "low", "close", "volume")}
    table = pl.DataFrame({"time": pl.Series(bars.open_us).cast(pl.Datetime("us", "UTC")), **series})

    def stream() -> dict[Timeframe, list[tuple[float, ...]]]:
        resampler = Resampler(universe)
        found: dict[Timeframe, list[tuple[float, ...]]] = {timeframe: [] for timeframe in HIGHER}
        for frame in base:
            for higher in resampler.feed(frame):
                bar = higher.bars[0]
                found[higher.timeframe].append((bar.open, bar.high, bar.low, bar.close))
        return found

    def polars() -> dict[Timeframe, list[tuple[float, ...]]]:
        found = {}
        for timeframe in HIGHER:
            groups = table.group_by_dynamic("time", every=timeframe.value)
            columns = pl.col("open").first(), pl.col("high").max(), pl.col("low").min(), pl.col("close").last()
            found[timeframe] = groups.agg(*columns, pl.col("volume").sum()).select(list(series)[:4]).rows()
        return found

    ours, theirs = stream(), polars()
    for timeframe in HIGHER:  # the last bucket may not be closed
        if not ours[timeframe] or ours[timeframe] != theirs[timeframe][: len(ours[timeframe])]:
            raise RuntimeError(f"the two made other bars of {timeframe}")
    cpu_s: list[float] = []

    def timed() -> None:
        started = time.process_time()
        stream()
        cpu_s.append(time.process_time() - started)

    compared = in_turns({"ours": (timed, BARS), "polars": (polars, BARS)}, ROUNDS)
    report(
        [
            Row("minutes into 5m, 15m, 1h, 4h and 1d, frame by frame", compared.rates["ours"], "bars/s", None),
            Row("the same, by CPU time", BARS / statistics.median(cpu_s[1:]), "bars/s", 100_000.0),
            Row(
                "the same, of what a batch does",
                compared.rates["ours"],
                "bars/s",
                None,
                "at least",
                "polars group_by_dynamic",
                compared.rates["polars"],
                compared.ratio("ours", "polars"),
            ),
        ],
        [
            f"{BARS:,} minutes of one instrument; ours takes a frame, a pydantic message, a bar and gives the frames "
            "that closed with it, as messages; polars groups whole columns, five times, and knows all bars before. The "
            f"prices are equal. {ROUNDS} rounds in turns.",
        ],
    )


if __name__ == "__main__":
    measure()
