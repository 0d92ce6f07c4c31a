"""The folder of an embedded stack, over many runs: one name in it stands for one history of bars, which may grow."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tradeloop.cli.source import Source
from tradeloop.common.bar_store.sql import SqlBarStore
from tradeloop.common.clock import SystemClock
from tradeloop.common.errors import UserError
from tradeloop.common.market import EVER_US, BarArrays, Universe, from_us, resample

_UNIVERSES = "universes"


def check_home(home: Path, source: Source) -> None:
    """Refuse what contradicts a home: a universe of other instruments, or a bar that the files lack or have otherwise.

    What the store then reads back are the rows of the files, and no others. Raises `UserError`.
    """
    if home.exists() and not home.is_dir():
        raise UserError(f"{home} is no folder: name another --home")
    for market in source.markets:
        _check(home, market, "--name" if market is source else "NAME in --also NAME=FILE")


def _check(home: Path, source: Source, name: str) -> None:
    """Refuse one market; `name` is what may be chosen anew."""
    known, universe = known_universe(home, source.universe.name), source.universe
    if known is not None and (known.ids, known.timeframe) != (universe.ids, universe.timeframe):
        raise UserError(
            f"{home} knows universe {universe.name} as {', '.join(known.ids)} at {known.timeframe}, and now it would "
            f"be {', '.join(universe.ids)} at {universe.timeframe}: choose another {name}, or another --home"
        )
    if not (home / "bars.db").exists():
        return
    with closing(SqlBarStore(f"sqlite:///{home / 'bars.db'}", SystemClock())) as store:
        for timeframe in (universe.timeframe, *universe.higher_timeframes):
            derived = timeframe is not universe.timeframe
            own = source.history
            if derived:
                own = resample(source.history, universe.timeframe, timeframe, EVER_US, universe.days)
            stored = store.read(universe.ids, timeframe, -EVER_US, EVER_US)
            for a, instrument in enumerate(universe.ids):
                rows = np.flatnonzero(stored.present[:, a])
                if derived:
                    rows = rows[:-1]  # the last one may have been cut short by the end of a shorter file
                wrong = rows[~_is_among(stored, own, a, rows)]
                if len(wrong):
                    at = from_us(stored.open_us[wrong[0]])
                    raise UserError(
                        f"{home} holds {len(rows):,} {timeframe} bars of {instrument}, and {len(wrong):,} of them are "
                        f"missing or different in {source.files[instrument]}, the first at {at:%Y-%m-%d %H:%M} UTC: a "
                        f"name stands for one history; choose another {name}, or another --home"
                    )


def remember(home: Path, source: Source) -> None:
    """Let the home know the universes whose bars it holds."""
    (home / _UNIVERSES).mkdir(exist_ok=True)
    for market in source.markets:
        path = home / _UNIVERSES / f"{market.universe.name}.json"
        path.write_text(market.universe.model_dump_json(indent=2) + "\n", encoding="utf-8")


def known_universe(home: Path, name: str) -> Universe | None:
    """A universe whose bars a home holds; None where it knows none of that name. Raises `UserError`."""
    path = home / _UNIVERSES / f"{name}.json"
    try:
        return Universe.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}): remove it, or choose another --home"
        ) from error


def _is_among(stored: BarArrays, own: BarArrays, a: int, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the stored rows of an instrument the file has, with the same values."""
    place = np.searchsorted(own.open_us, stored.open_us[rows])
    inside = place < len(own)
    place = np.where(inside, place, 0)
    same = inside & (own.open_us[place] == stored.open_us[rows]) & own.present[place, a]
    here_all, there_all = own.columns(), stored.columns()
    for name in here_all.keys() | there_all.keys():
        here = here_all[name][place, a] if name in here_all else np.full(len(rows), np.nan)
        there = there_all[name][rows, a] if name in there_all else np.full(len(rows), np.nan)
        same &= (here == there) | (np.isnan(here) & np.isnan(there))
    return np.asarray(same)
