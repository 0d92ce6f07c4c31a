"""Further columns of files that are kept: numbers or nothing, whatever the file's kind and order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tradeloop.common.errors import UserError
from tradeloop.common.market import Instrument
from tradeloop.common.messages.ingest import Reading
from tradeloop.ingest.adapters.files import read_bars

X = Instrument(id="x:A")
VALUES = [1.5, None, -2.25, 0.0, None, 1e-9, 7.0, 8.5, 9.0, 1000.125, None, 3.0]


def table(first: int = 0, values: list[float | None] = VALUES) -> pl.DataFrame:
    days = pl.Series("time", np.datetime64("2024-01-01", "us") + (first + np.arange(len(values))) * 86_400_000_000)
    prices = {
        name: [100.0 + step] * len(values) for name, step in (("open", 0), ("high", 1), ("low", -1), ("close", 0))
    }
    return pl.DataFrame({"time": days, **prices, "volume": 5.0, "Score": values})


def kept(path: Path, reading: Reading | None = None) -> list[float | None]:
    bars, report = read_bars(str(path), X, reading=reading or Reading(keep={"score": "Score"}))
    assert report.columns["score"] == "Score"
    assert "Score" not in report.ignored
    return [None if np.isnan(value) else value for value in bars.extra["score"][:, 0].tolist()]


@pytest.mark.parametrize("ending", ["csv", "parquet", "feather", "json"])
@pytest.mark.parametrize("newest_first", [False, True])
def test_numbers_and_their_absence_are_kept_from_every_kind_of_file(
    tmp_path: Path, ending: str, newest_first: bool
) -> None:
    path, given = tmp_path / f"a.{ending}", table().reverse() if newest_first else table()
    match ending:
        case "csv":
            given.write_csv(path)
        case "parquet":
            given.write_parquet(path)
        case "feather":
            given.write_ipc(path)
        case "json":
            given.with_columns(pl.col("time").dt.strftime("%Y-%m-%d")).write_json(path)
    assert kept(path) == VALUES


def test_decimal_commas_and_words_for_nothing_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    words = ["NaN", "", "null", "N/A"]
    cells = [f"{i},5" if i % 3 else words[i // 3 % 4] for i in range(12)]
    rows = [f"2024-01-{i + 1:02};100,5;101,5;99,5;100,5;7;{cell}" for i, cell in enumerate(cells)]
    path.write_text("\n".join(["date;open;high;low;close;volume;Score", *rows]))
    assert kept(path) == [i + 0.5 if i % 3 else None for i in range(12)]


def test_a_column_may_be_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    table().write_csv(path)
    assert kept(path, Reading(keep={"score": "7"})) == VALUES


def test_files_that_are_joined_keep_the_column_of_each(tmp_path: Path) -> None:
    one, two = tmp_path / "a.csv", tmp_path / "b.csv"
    table().write_csv(one)
    table(12).write_csv(two)
    assert kept(one, Reading(keep={"score": "Score"}, more=(str(two),))) == VALUES * 2
    table(12).drop("Score").write_csv(two)
    with pytest.raises(UserError, match=r"--keep score=Score: it has no such columns"):
        kept(one, Reading(keep={"score": "Score"}, more=(str(two),)))


def test_a_number_that_is_infinite_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    table(values=[*VALUES[:5], float("inf"), *VALUES[6:]]).write_csv(path)
    with pytest.raises(UserError, match="line 7: score is inf"):
        kept(path)


@pytest.mark.parametrize("name", ["volume", "Score", "time", "a" * 49, "_x"])
def test_names_that_no_column_may_have_are_refused_at_the_door(name: str) -> None:
    with pytest.raises(ValueError, match="a further column has a name of"):
        Reading(keep={name: "Score"})
