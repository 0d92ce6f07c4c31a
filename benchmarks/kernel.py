"""The bound for the environments: one compiled function that only does the arithmetic.

For every book: size the order, fill it at the next open, book it, mark it, reward it, copy the observation; start
anew where an episode ended. Written for one instrument and the example's costs and reward. It checks nothing, knows
no strategy or reward as plug-ins, keeps no record of fills, and fulfils no interface.
"""

from __future__ import annotations

from collections.abc import Callable
from math import copysign, floor, log
from typing import Any, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Float32s = NDArray[np.float32]
Ints = NDArray[np.int64]

CASH, EQUITY, PEAK, POSITION, ENTRY, HOLDING = range(6)
FEE, SLIPPAGE, BAND, LOT, DRAWDOWN_WEIGHT, TURNOVER_WEIGHT, CAPITAL, MAX_DRAWDOWN, MAX_POSITION, MAX_ORDER = range(10)


def _step(
    books: Floats,
    rows: Ints,
    ends: Ints,
    fresh: Ints,
    next_fresh: int,
    terms: Floats,
    opens: Floats,
    closes: Floats,
    seen: Float32s,
    window: int,
    episode_bars: int,
    actions: Float32s,
    out: Float32s,
    rewards: Float32s,
    done: NDArray[np.bool_],
) -> int:
    """Books (N, 6) walk on by a bar. `fresh` are rows to start at, taken in turn from `next_fresh` on."""
    columns = seen.shape[1]
    width = window * columns
    flat = seen.reshape(-1)
    for n in range(rows.shape[0]):
        book = books[n]
        row = rows[n]
        equity, position, price = book[EQUITY], book[POSITION], closes[row]
        weight = min(max(np.float64(actions[n, 0]), -1.0), 1.0)
        quantity = 0.0
        if abs(weight - position * price / equity) >= terms[BAND] or (weight == 0.0 and position != 0.0):
            target = weight * equity / price
            target = copysign(floor(abs(target) / terms[LOT] + 1e-9) * terms[LOT], target)
            quantity = target - position
            if abs(quantity) * price / equity > terms[MAX_ORDER] or abs(target) * price / equity > terms[MAX_POSITION]:
                quantity = -position if position * target < 0.0 else 0.0
        row += 1
        rows[n] = row
        close = closes[row]
        traded = 0.0
        if quantity != 0.0:
            paid = opens[row] * (1.0 + terms[SLIPPAGE] if quantity > 0.0 else 1.0 - terms[SLIPPAGE])
            traded = abs(quantity) * paid
            book[CASH] -= quantity * paid + traded * terms[FEE]
            after = position + quantity
            if abs(after) < 0.5 * terms[LOT]:
                after = 0.0
            if position * after <= 0.0:
                book[ENTRY] = paid
                book[HOLDING] = 0.0
            elif abs(after) > abs(position):
                book[ENTRY] = (book[ENTRY] * abs(position) + paid * abs(quantity)) / abs(after)
            book[POSITION] = position = after
        book[HOLDING] = book[HOLDING] + 1.0 if position != 0.0 else 0.0
        marked = book[CASH] + position * close
        book[EQUITY] = marked
        book[PEAK] = max(book[PEAK], marked)
        drawdown = 1.0 - marked / book[PEAK]
        rewards[n] = (
            100.0 * log(marked / equity)
            - terms[DRAWDOWN_WEIGHT] * drawdown
            - terms[TURNOVER_WEIGHT] * (traded / equity)
        )
        done[n] = row == ends[n] or drawdown >= terms[MAX_DRAWDOWN]
        if done[n]:
            row = fresh[next_fresh % fresh.shape[0]]
            next_fresh += 1
            rows[n] = row
            ends[n] = row + episode_bars
            book[CASH] = book[EQUITY] = book[PEAK] = marked = terms[CAPITAL]
            book[POSITION] = book[ENTRY] = book[HOLDING] = position = drawdown = 0.0
        start = (row - window + 1) * columns
        source = flat[start : start + width]
        one = out[n]
        for i in range(width):
            one[i] = source[i]
        gain = closes[row] / book[ENTRY] - 1.0 if position != 0.0 else 0.0
        one[width] = position * closes[row] / marked
        one[width + 1] = gain if position >= 0.0 else -gain
        one[width + 2] = book[HOLDING] / (book[HOLDING] + 32.0)
        one[width + 3] = drawdown
    return next_fresh


step = cast(Callable[..., Any], njit(cache=True, error_model="numpy")(_step))
