"""The promises about features: they keep their values, know no future, and stream as they train."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from tradeloop.common.arrays import Floats
from tradeloop.common.contracts.strategy.trial import SEED, STREAMED, Trial
from tradeloop.common.features import ANCHOR_BARS, BarValues, FeatureStream
from tradeloop.common.features.feature import FIELDS
from tradeloop.common.market import BarArrays, Timeframe, align

_CUTS = (1, 151, 313)
"""Bars from the end at which the future is taken away, or is another."""
_RESTARTS, _AFTERWARDS = 12, 16
"""How often a stream is opened anew, and how many bars it is then compared on."""
_FORETOLD = 0.3
"""A rank correlation with the next return that no feature of a random walk has: some ten standard errors."""


def features_keep_their_values(trial: Trial) -> None:
    known = ~np.isnan(trial.batch)
    lost = np.logical_or.accumulate(known) & ~known
    if lost.any():
        row, _, column = np.argwhere(lost)[0]
        raise trial.broken(
            f"has a feature that loses its value: {trial.features.names[column]} is NaN at bar {row}, after bars at "
            "which it had one; guard it where the price stands still or nothing trades, e.g. a division by zero"
        )


def features_foretell_nothing(trial: Trial) -> None:
    """On a random walk nothing goes with the next return, but what was made of it."""
    bars = trial.bars
    returns = np.diff(np.log(bars.close), axis=0)
    for f, name in enumerate(trial.features.names):
        values = trial.batch[:-1, :, f]
        known = ~np.isnan(values) & ~np.isnan(returns) & bars.present[1:] & (returns != 0.0)
        if known.sum() < STREAMED:
            continue
        correlation = _rank_correlation(values[known], returns[known])
        if abs(correlation) > _FORETOLD:
            raise trial.broken(
                f"looks ahead: feature {name} goes with the return of the next bar (rank correlation "
                f"{correlation:.2f} over {known.sum():,} bars of a random walk, the first of them bar "
                f"{int(np.argwhere(known)[0][0])}): it is shifted by a bar or more; a value at a bar may use that bar "
                "and earlier ones only, so compare with close[-2], never with what follows close[-1]"
            )


def features_know_no_future(trial: Trial) -> None:
    for cut in (len(trial.bars) - before for before in _CUTS):
        if found := trial.first_difference(trial.values(trial.bars.slice(0, cut)), trial.batch[:cut]):
            raise trial.broken(
                f"looks ahead: {found} changes when the bars from {cut} on are taken away; let it use its own bar and "
                "earlier ones only, and nothing that depends on how many bars there are"
            )


def features_ignore_another_future(trial: Trial) -> None:
    bars = trial.bars
    for cut in (len(bars) - before for before in _CUTS):
        columns = {name: getattr(bars, name).copy() for name in FIELDS}
        factors = np.random.default_rng(SEED).uniform(0.5, 2.0, (len(bars) - cut, 1))
        for column in columns.values():
            column[cut:] *= factors
        if found := trial.first_difference(trial.values(replace(bars, **columns))[:cut], trial.batch[:cut]):
            raise trial.broken(
                f"looks ahead: {found} changes when the bars from {cut} on are others; let it use its own bar and "
                "earlier ones only"
            )


def features_stream(trial: Trial) -> None:
    bars = trial.bars
    start = len(bars) - STREAMED
    past = trial.frames(bars.slice(0, start))
    for t, values in _streamed(trial, past, start, len(bars)):
        if found := trial.first_difference(values, trial.batch[t : t + 1], t):
            raise trial.broken(
                f"trains on other values than it trades on: bar by bar, {found} differs; let a value depend on the "
                "bars of its own window alone, not on those of others that are computed with it, nor on earlier calls"
            )


def features_restart(trial: Trial) -> None:
    bars, first = trial.bars, len(trial.bars) - STREAMED
    anchors = first + np.flatnonzero(np.diff(bars.open_us[first:] // (ANCHOR_BARS * trial.base.us)) > 0)
    chosen = np.random.default_rng(SEED).integers(first, len(bars) - _AFTERWARDS, _RESTARTS)
    for cut in sorted({*chosen.tolist(), *(int(a) + n for a in anchors for n in (0, 1, 2))}):
        end = min(cut + _AFTERWARDS, len(bars))
        for t, values in _streamed(trial, _history(trial, cut), cut, end):
            if found := trial.first_difference(values, trial.batch[t : t + 1], t):
                raise trial.broken(
                    f"trades on other values after a restart: {found} differs when the stream is opened at bar {cut}; "
                    "let `history` count all bars before its own that the feature depends on"
                )


def _history(trial: Trial, cut: int) -> Mapping[Timeframe, BarArrays]:
    """The bars that a stream is given which opens at bar `cut`: of each instrument those that its features ask for."""
    seen = trial.all_frames
    closed = {
        timeframe: cut
        if timeframe is trial.base
        else int(np.searchsorted(one.close_us, trial.bars.close_us[cut - 1], side="right"))
        for timeframe, one in seen.items()
    }
    given = {}
    for timeframe, one in seen.items():
        series = []
        for a in range(len(one.instruments)):
            own = np.flatnonzero(one.present[: closed[timeframe], a])[-trial.features.history(timeframe) :]
            columns = {name: column[own, a] for name, column in one.columns().items()}
            series.append({"open_us": one.open_us[own]} | columns)
        given[timeframe] = align(one.instruments, timeframe, series)
    return given


def _streamed(trial: Trial, past: Mapping[Timeframe, BarArrays], start: int, stop: int) -> Iterator[tuple[int, Floats]]:
    """The values (1, A, F) of a stream that is opened on the past, at bars `start` to `stop`."""
    bars = trial.bars
    stream = FeatureStream(trial.features, trial.base, bars.instruments)
    trial.call("a feature's state", stream.open, past)
    frames = trial.all_frames
    known_us = bars.close_us[start - 1]
    taken = {
        timeframe: int(np.searchsorted(frames[timeframe].close_us, known_us, side="right"))
        for timeframe in trial.features.timeframes
    }
    for t in range(start, stop):
        for timeframe, next_one in taken.items():
            higher = frames[timeframe]
            if next_one < len(higher) and higher.close_us[next_one] <= bars.close_us[t]:
                trial.call("a feature's state", stream.update_higher, timeframe, *_frame(trial, higher, next_one))
                taken[timeframe] += 1
        yield t, np.array(trial.call("a feature's state", stream.update, *_frame(trial, bars, t)))[None]


def _frame(trial: Trial, bars: BarArrays, t: int) -> tuple[int, int, list[BarValues | None]]:
    """A frame as a stream takes it."""
    return int(bars.open_us[t]), int(bars.close_us[t]), trial.features.frame(bars, t)


def _rank_correlation(one: Floats, other: Floats) -> float:
    """Spearman's, of arrays (n,); 0 where one of them never changes. Equal values take the ranks as they come."""
    if np.ptp(one) == 0.0 or np.ptp(other) == 0.0:
        return 0.0
    ranks = np.array([np.unique(values, return_inverse=True)[1] for values in (one, other)], dtype=np.float64)
    ranks -= ranks.mean(axis=1, keepdims=True)
    return float(ranks[0] @ ranks[1] / math.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1])))
