"""The promises about features: they keep their values, know no future, and stream as they train."""

from __future__ import annotations

import numpy as np

from tradeloop.common.contracts.strategy.trial import STREAMED, Trial
from tradeloop.common.features import BarValues, FeatureStream
from tradeloop.common.market import BarArrays


def features_keep_their_values(trial: Trial) -> None:
    known = ~np.isnan(trial.batch)
    lost = np.logical_or.accumulate(known) & ~known
    if lost.any():
        row, _, column = np.argwhere(lost)[0]
        raise trial.broken(
            f"has a feature that loses its value: {trial.features.names[column]} is NaN at bar {row}, after bars at "
            "which it had one; guard it where the price stands still or nothing trades, e.g. a division by zero"
        )


def features_know_no_future(trial: Trial) -> None:
    for cut in (len(trial.bars) - 1, len(trial.bars) - 151, len(trial.bars) - 313):
        if where := trial.difference(trial.values(trial.bars.slice(0, cut)), trial.batch[:cut]):
            raise trial.broken(f"looks ahead: {where} changes when the bars from {cut} on are taken away")


def features_stream(trial: Trial) -> None:
    bars, base = trial.bars, trial.base
    start = len(bars) - STREAMED
    stream = FeatureStream(trial.features, base, bars.instruments)
    frames, past = trial.frames(bars), trial.frames(bars.slice(0, start))
    trial.call("a feature's state", stream.open, past)
    taken = {timeframe: len(past[timeframe]) for timeframe in trial.features.timeframes}
    for t in range(start, len(bars)):
        for timeframe, next_one in taken.items():
            higher = frames[timeframe]
            if next_one < len(higher) and higher.close_us[next_one] <= bars.close_us[t]:
                trial.call("a feature's state", stream.update_higher, timeframe, *_frame(trial, higher, next_one))
                taken[timeframe] += 1
        values = np.array(trial.call("a feature's state", stream.update, *_frame(trial, bars, t)))
        if where := trial.difference(values[None], trial.batch[t : t + 1]):
            raise trial.broken(f"trains on other values than it trades on: bar by bar, {where} differs")


def _frame(trial: Trial, bars: BarArrays, t: int) -> tuple[int, int, list[BarValues | None]]:
    """A frame as a stream takes it."""
    return int(bars.open_us[t]), int(bars.close_us[t]), trial.features.frame(bars, t)
