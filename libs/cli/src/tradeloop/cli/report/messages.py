"""The messages of a run, kept in a file, so that its decisions can be explained when its bus is gone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import polars as pl
from polars.io.plugins import register_io_source

from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import Bus, Record
from tradeloop.common.errors import UserError
from tradeloop.common.messages import (
    BarFrame,
    FeaturesComputed,
    InstrumentChanged,
    ModelActivated,
    ModelReady,
    OrderFilled,
    OrderUpdated,
    PortfolioEvent,
    PortfolioMarked,
    RiskVerdict,
    SignalGenerated,
    TrainingRequested,
    Transition,
)
from tradeloop.common.messages.topics import CATALOGUE, specs, topic_of
from tradeloop.common.runtime.headers import ID, TRACE
from tradeloop.common.runtime.readback import all_records

MESSAGES, PORTFOLIO = "messages.parquet", "portfolio.yaml"
_KEPT = (
    TrainingRequested,
    ModelReady,
    BarFrame,
    InstrumentChanged,
    FeaturesComputed,
    ModelActivated,
    SignalGenerated,
    OrderUpdated,
    OrderFilled,
    PortfolioMarked,
    RiskVerdict,
    PortfolioEvent,
    Transition,
)
_SCHEMA = {"topic": pl.String, "key": pl.String, "id": pl.String, "trace": pl.String, "time": pl.String}
_BLOCK, _GROUP = 2_048, 65_536


def write_messages(bus: Bus, path: Path) -> None:
    """Write the messages of a run that trades no more. Some of them at a time are in memory."""
    blocks = _blocks(bus)
    first = next(blocks)
    rest = chain((first,), blocks)
    table = register_io_source(lambda *_: rest, schema=first.schema)
    table.sink_parquet(path, compression="zstd", compression_level=3, row_group_size=_GROUP)


def _blocks(bus: Bus) -> Iterator[pl.DataFrame]:
    records = chain.from_iterable(all_records(bus, topic_of(kind).name) for kind in _KEPT)
    while True:
        block = list(islice(records, _BLOCK))
        yield pl.DataFrame([_row(one) for one in block], schema={**_SCHEMA, "value": pl.Binary}, orient="row")
        if len(block) < _BLOCK:
            return


def _row(record: Record) -> tuple[object, ...]:
    headers = record.headers
    return record.topic, record.key, headers.get(ID), headers.get(TRACE), headers.get("ce_time"), record.value


def read_messages(folder: Path) -> MemoryBus:
    """The messages of a run, on a bus of their own. Raises `UserError` where the folder has none."""
    path = folder / MESSAGES
    try:
        table = pl.read_parquet(path)
        bus = MemoryBus(max_message_bytes=1 << 30)
        bus.create_topics(specs({}))
        producer = bus.producer()
        for topic, key, id_, trace, time, value in table.iter_rows():
            named = {ID: id_, TRACE: trace, "ce_time": time}
            producer.publish(CATALOGUE[topic].name, key, value, {name: text for name, text in named.items() if text})
    except (OSError, pl.exceptions.PolarsError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}): --run names the folder of a `tradeloop demo`, its --out"
        ) from error
    return bus
