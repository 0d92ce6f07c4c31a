"""A whole step as a C function of one address.

Unpacking more than twenty arrays takes NumPy and Numba longer than stepping one book; a pointer costs nothing.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numba import cfunc, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from tradeloop.common.simulation.kernels import LEGS, LIMITS, RULES, SUMS, advance

_N_SUMS, _N_LEGS, _N_RULES, _N_LIMITS = len(SUMS), len(LEGS), len(RULES), len(LIMITS)


@intrinsic
def _pointer_at(_: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


_at = cast(Callable[[int], Any], _pointer_at)


def _advance_from(table: Any) -> int:
    """`advance` for a table of six sizes and twenty-one addresses, in the order of its arguments."""
    t = carray(table, 27)
    n, a, length, width, window, size = t[0], t[1], t[2], t[3], t[4], t[5]
    return advance(
        carray(_at(t[6]), (_N_SUMS, n), np.float64),
        carray(_at(t[7]), (_N_LEGS, n, a), np.float64),
        carray(_at(t[8]), (n,), np.int8),
        carray(_at(t[9]), (n, a), np.int8),
        carray(_at(t[10]), (n, 3 * a + 1), np.float64),
        carray(_at(t[11]), (_N_RULES, a), np.float64),
        carray(_at(t[12]), (_N_LIMITS,), np.float64),
        carray(_at(t[13]), (length, a, 4), np.float64),
        carray(_at(t[14]), (length, a), np.bool_),
        carray(_at(t[15]), (length, a), np.int8),
        carray(_at(t[16]), (length,), np.int64),
        carray(_at(t[17]), (length, width), np.float32),
        window,
        carray(_at(t[18]), (n,), np.int64),
        carray(_at(t[19]), (n,), np.int64),
        carray(_at(t[20]), (n,), np.int64),
        carray(_at(t[21]), (n,), np.int64),
        carray(_at(t[22]), (n,), np.bool_),
        carray(_at(t[23]), (n,), np.bool_),
        carray(_at(t[24]), (n,), np.int64),
        carray(_at(t[25]), (n, a), np.float64),
        carray(_at(t[26]), (n, size), np.float32),
    )


@functools.cache
def compiled_advance() -> Callable[[int], int]:
    """A C function of the address of such a table, compiled when training first asks for it."""
    table: Any = types.CPointer(types.intp)  # type: ignore[no-untyped-call]
    compiled = cfunc(types.intp(table), cache=True)(_advance_from)
    return ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p)(cast(int, compiled.address))
