"""The files of a run, for whoever wants to check it: CSV for a spreadsheet, Parquet for the transitions.

Times are UTC ISO 8601, floats have full precision, and the same run gives the same bytes. Cash and equity can be
recomputed from `fills.csv` and `bars.csv` alone, unless the bars carry funding rates.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from tradeloop.cli.report.transitions import Joined, write_transitions
from tradeloop.common.arrays import Floats
from tradeloop.common.errors import UserError
from tradeloop.common.evaluation.backtest import BacktestResult
from tradeloop.common.evaluation.significance import Significance
from tradeloop.common.market import BAR_PRICES, BarArrays, to_us
from tradeloop.common.messages import (
    OrderFilled,
    OrderUpdated,
    PortfolioMarked,
    RiskVerdict,
    SignalGenerated,
    Transition,
)
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.strategy import Strategy

_TIME = pl.Datetime("us", "UTC")
_Schema = Mapping[str, pl.DataType | type[pl.DataType]]
_ISO = "%Y-%m-%dT%H:%M:%S%.fZ"


@dataclass(frozen=True, eq=False)
class Run:
    """One portfolio traded over T bars, and everything that was published on the way.

    Its messages may be decoded anew in each pass over them (`tradeloop.common.runtime.readback.Messages`): to go over
    them once is better than twice, and to keep columns better than messages.

    Raises ValueError when the marks or the baselines are not one a bar.
    """

    portfolio: Portfolio
    strategy: Strategy
    bars: BarArrays
    """The traded range."""
    features: Floats
    """Features as of each bar's close, (T, A, F), NaN where one is not known: what the policy saw, beside the marks."""
    signals: Sequence[SignalGenerated]
    orders: Sequence[OrderUpdated]
    """Every update, in the order of publication."""
    fills: Sequence[OrderFilled]
    marks: Sequence[PortfolioMarked]
    """Marks, one at the close of each bar."""
    transitions: Sequence[Transition]
    verdicts: Sequence[RiskVerdict]
    baselines: Mapping[str, BacktestResult]
    """Other rules over the same bars, by name."""
    summary: Mapping[str, object]
    """JSON-ready. The report shows `seed`, `train_bars` (bars of the history before the traded range) and
    `parity_rel_diff` (largest relative difference of equity between the backtest and this run), where given."""
    source: str
    """Name of the data, as the report shows it."""
    significance: Significance | None = None
    """The policy against its own decisions at other times; None where it decided nothing, or nobody asked."""
    training: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the training, named for their sample: `in_sample_sharpe`, `valid_sharpe`. Without such a prefix: of
    the bars that it was trained on."""

    def __post_init__(self) -> None:
        if not len(self.bars) == len(self.marks) > 0:
            raise ValueError(f"a run needs one mark a bar, got {len(self.marks)} for {len(self.bars)} bars")
        if len(self.features) != len(self.bars):
            raise ValueError(f"a run needs features of each bar, got {len(self.features)} for {len(self.bars)} bars")
        for name, result in self.baselines.items():
            if len(result.equity) != len(self.bars):
                raise ValueError(f"baseline {name} has {len(result.equity)} values for {len(self.bars)} bars")


@contextmanager
def stage(out: Path) -> Iterator[Path]:
    """A temporary folder whose files move into `out` when the block ends well, and vanish otherwise.

    It lies in `out`, or where `out` is still to be made in the nearest folder that exists: on the same filesystem,
    so that each file arrives whole. Raises UserError at once when nothing can be written there.
    """
    home = next(folder for folder in (out, *out.absolute().parents) if folder.exists() or folder.is_symlink())
    if not home.is_dir():
        raise UserError(f"{out}: {home} is not a folder; name another folder, or move it away")
    try:
        # It removes itself when the interpreter ends, so that no interrupt leaves it behind.
        folder = tempfile.TemporaryDirectory(prefix=".tradeloop-", dir=home)
    except OSError as error:
        raise UserError(f"{out}: cannot write there ({error.strerror}); name a folder that you may write to") from error
    with folder as staging:
        yield Path(staging)
        _move(Path(staging), out)


def _move(staging: Path, out: Path) -> None:
    moves = [(file, out / file.relative_to(staging)) for file in sorted(staging.rglob("*")) if file.is_file()]
    for _, target in moves:
        if target.is_dir():
            raise UserError(f"{target} is a folder where a file should go; move it away")
    try:
        for _, target in moves:
            target.parent.mkdir(parents=True, exist_ok=True)
        for file, target in moves:
            os.replace(file, target)
    except OSError as error:
        raise UserError(f"{error.filename2 or error.filename}: cannot be written ({error.strerror})") from error


def write_run(folder: Path, run: Run) -> list[Path]:
    """Write the audit files and `summary.json` into an existing folder; gives their paths."""
    tables = {
        "bars.csv": _bars(run.bars),
        "signals.csv": _signals(run.signals),
        "orders.csv": _orders(run.orders),
        "fills.csv": _fills(run.fills),
        "equity.csv": _equity(run.marks),
    }
    written = []
    for name, table in tables.items():
        written.append(folder / name)
        table.with_columns(pl.col(_TIME).dt.strftime(_ISO)).write_csv(written[-1])
    written.append(folder / "transitions.parquet")
    joined = Joined(run.strategy, run.bars, run.features, run.signals, run.fills)
    write_transitions(run.transitions, joined, written[-1])
    written.append(folder / "summary.json")
    text = json.dumps(dict(run.summary), indent=2, ensure_ascii=False, allow_nan=False)
    written[-1].write_text(text + "\n", encoding="utf-8", newline="\n")
    return written


def _bars(bars: BarArrays) -> pl.DataFrame:
    """The bars that the source had; what only repeats the last close is left out."""
    rows, columns = np.nonzero(bars.present)
    table: dict[str, pl.Series | list[str]] = {
        "open_time": pl.Series(bars.open_us[rows]).cast(_TIME),
        "close_time": pl.Series(bars.close_us[rows]).cast(_TIME),
        "instrument": [bars.instruments[a] for a in columns],
    }
    for name in (*BAR_PRICES, "volume"):
        table[name] = pl.Series(getattr(bars, name)[rows, columns])
    return pl.DataFrame(table).with_columns(pl.col("volume").fill_nan(None)).sort("open_time", "instrument")


def _signals(signals: Sequence[SignalGenerated]) -> pl.DataFrame:
    rows = [
        (to_us(signal.time), instrument, target, signal.model_version)
        for signal in signals
        for instrument, target in zip(signal.instruments, signal.targets, strict=True)
    ]
    schema: _Schema = {
        "decision_time": _TIME,
        "instrument": pl.String,
        "target": pl.Float64,
        "model_version": pl.String,
    }
    return _table(rows, schema).sort("decision_time", "instrument")


def _orders(orders: Sequence[OrderUpdated]) -> pl.DataFrame:
    """The last state of each order."""
    last = {
        o.order_id: (o.order_id, to_us(o.decision_time), o.instrument, o.side, o.quantity, o.status, o.reason or None)
        for o in orders
    }
    schema: _Schema = {
        "order_id": pl.String,
        "decision_time": _TIME,
        "instrument": pl.String,
        "side": pl.String,
        "quantity": pl.Float64,
        "status": pl.String,
        "reason": pl.String,
    }
    return _table(list(last.values()), schema).sort("decision_time", "instrument", maintain_order=True)


def _fills(fills: Sequence[OrderFilled]) -> pl.DataFrame:
    rows = [
        (f.fill_id, f.order_id, to_us(f.time), f.instrument, f.side, f.quantity, f.price, f.fee, f.reason)
        for f in fills
    ]
    schema: _Schema = {
        "fill_id": pl.String,
        "order_id": pl.String,
        "time": _TIME,
        "instrument": pl.String,
        "side": pl.String,
        "quantity": pl.Float64,
        "price": pl.Float64,
        "fee": pl.Float64,
        "reason": pl.String,
    }
    return _table(rows, schema).sort("time", "instrument", maintain_order=True)


def _equity(marks: Sequence[PortfolioMarked]) -> pl.DataFrame:
    rows = [(to_us(mark.time), mark.cash, mark.equity) for mark in marks]
    return _table(rows, {"time": _TIME, "cash": pl.Float64, "equity": pl.Float64})


def _table(rows: Sequence[tuple[object, ...]], schema: _Schema) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=dict(schema), orient="row")
