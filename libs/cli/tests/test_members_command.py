"""`--members` and `tradeloop bars members`: a universe in time, from the command line to the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tradeloop.cli.adjusting import adjusted_view
from tradeloop.cli.main import main
from tradeloop.cli.members import with_members
from tradeloop.cli.source import Source, open_source
from tradeloop.cli.understood import understood
from tradeloop.common.errors import UserError
from tradeloop.common.strategy import load

EXAMPLE = load("example")
DAYS = 700


def day(number: int) -> str:
    return str(np.datetime64("2020-01-01") + number)


def bars_of(path: Path, first: int, last: int, seed: int) -> Path:
    """A file of the days from one to another, of a random walk with volumes."""
    random = np.random.default_rng(seed)
    closes = 100.0 * np.exp(random.normal(0.0, 0.01, DAYS).cumsum())
    opens, prices = (closes * np.exp(random.normal(0.0, 0.002, DAYS))).tolist(), closes.tolist()
    rows = [
        f"{day(t)},{opens[t]!r},{max(opens[t], prices[t]) * 1.01!r},{min(opens[t], prices[t]) * 0.99!r},{prices[t]!r},"
        f"{1000 + t * seed}"
        for t in range(first, last)
    ]
    path.write_text("\n".join(["date,open,high,low,close,volume", *rows, ""]))
    return path


def folder_of(tmp_path: Path) -> list[str]:
    """One that is always there, one that ends early, and one that is listed late."""
    found = {"AAA": (0, DAYS), "BBB": (0, 620), "CCC": (300, DAYS)}
    for seed, (name, (first, last)) in enumerate(found.items(), 1):
        bars_of(tmp_path / f"{name}.csv", first, last, seed)
    return [part for name in found for part in ("--bars", f"{name}={tmp_path / f'{name}.csv'}")]


def members(tmp_path: Path, *rows: str) -> Path:
    path = tmp_path / "members.csv"
    path.write_text("\n".join(["instrument,from,to", *rows, ""]))
    return path


ROWS = (f"AAA,{day(0)},", f"BBB,{day(0)},{day(600)}", f"ccc,{day(560)},{day(660)}")


def source_of(tmp_path: Path, rows: Sequence[str], **options: object) -> Source:
    bars = folder_of(tmp_path)[1::2]
    source = open_source(bars, EXAMPLE, name="trio", members_change=True)
    return with_members(source, members(tmp_path, *rows))


def test_a_demo_trades_members_alone_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*folder_of(tmp_path), "--members", str(members(tmp_path, *ROWS)), "--name", "trio"]
    out, home = tmp_path / "out", tmp_path / "home"
    assert main(["demo", *options, "--home", str(home), "--steps", "512", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "Dates in members.csv begin at 00:00 UTC" in said.err
    assert "Universe trio: 3 instruments, of which 1 to 3 at a time" in said.err
    assert "Backtest equals live to 0.0e+00" in said.out
    assert "Targets outside the universe's members, of which nothing was bought: not_a_member" in said.out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["universe"] == "3 instruments, of which 1 to 3 at a time"
    assert summary["denials"]["not_a_member"] > 10
    assert "3 instruments, of which 1 to 3 at a time" in (out / "report.html").read_text()
    fills = pl.read_csv(out / "fills.csv")
    opened = {
        name: [text[:10] for text in fills.filter(pl.col("instrument") == f"file:{name}")["time"].to_list()]
        for name in ("AAA", "BBB", "CCC")
    }
    assert opened["AAA"]
    assert opened["CCC"]
    assert all(one <= day(600) for one in opened["BBB"]), "the last fill sells it at the open of the day that it left"
    assert all(day(560) <= one <= day(660) for one in opened["CCC"]), "from the open of the day on which it joined"
    assert main(["backtest", *options, "--home", str(home), "--out", str(tmp_path / "again")]) == 0
    assert "of which 1 to 3 at a time" in (tmp_path / "again" / "report.html").read_text()


def test_what_the_file_has_and_the_bars_lack_is_said(tmp_path: Path) -> None:
    source = source_of(tmp_path, [f"AAA,{day(0)},", f"BBB,{day(630)},", f"DDD,{day(0)},"])
    said = "\n".join(understood(source))
    assert "end while it is a member" not in said
    assert "Warning: 1 of 3 instruments in members.csv have no bars here" in said
    assert "Warning: 1 membership without a single bar: file:BBB" in said
    assert "file:CCC is never a member: seen by features of(...), and never traded" in said
    assert "Universe trio: 3 instruments, of which 1 to 2 at a time" in said


def test_bars_that_end_before_their_membership_are_said(tmp_path: Path) -> None:
    """Whoever holds it when its bars have ended cannot sell it any more."""
    lines = {
        last: "\n".join(understood(source_of(tmp_path, [f"AAA,{day(0)},", f"BBB,{day(0)},{last}"])))
        for last in ("", day(650), day(620), day(619))
    }
    assert f"Warning: bars of 1 instrument end while it is a member (file:BBB on {day(619)})" in lines[""]
    assert [("end while it is a member" in said) for said in lines.values()] == [True, True, True, False]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["DDD,2020-01-01,"], "members of DDD, and the bars are of file:AAA, file:BBB, file:CCC"),
        (["AAA,2020-01-01,", "aaa,2021-01-01,"], "AAA and aaa are both file:AAA"),
        (["AAA,1999-01-01,2000-01-01"], "no instrument is a member at any of the bars"),
        ([f"CCC,{day(0)},{day(200)}"], "no instrument is a member at any of the bars"),
    ],
)
def test_a_file_that_fits_no_bars_is_refused(tmp_path: Path, rows: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        source_of(tmp_path, rows)


def test_an_adjusted_view_has_the_members_of_its_instruments(tmp_path: Path) -> None:
    bars_of(tmp_path / "x.csv", 0, DAYS, 1)
    bars_of(tmp_path / "y.csv", 0, DAYS, 2)
    actions = tmp_path / "actions.csv"
    actions.write_text(f"instrument,ex_date,kind,value\nAAA,{day(200)},dividend,1\n")
    bars = [f"{name}={tmp_path / file}" for name, file in (("AAA", "x.csv"), ("BBB", "y.csv"))]
    source = adjusted_view(open_source(bars, EXAMPLE, name="two"), actions, None, named=True)
    view = with_members(source, members(tmp_path, f"AAA,{day(0)},", f"file:BBB,{day(10)},{day(20)}"))
    assert list(view.universe.members) == ["file:AAA.adjusted", "file:BBB.adjusted"]


def test_members_do_not_go_with_further_markets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of(tmp_path)
    one, other = (f"{name}={tmp_path / f'{name}.csv'}" for name in ("AAA", "BBB"))
    file = members(tmp_path, ROWS[0])
    assert main(["train", "--bars", one, "--also", other, "--members", str(file), "--home", str(tmp_path / "h")]) == 2
    assert "--members is of one universe, and --also adds others" in capsys.readouterr().err


def test_the_largest_become_a_file_that_members_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bars = folder_of(tmp_path)[1::2]
    assert main(["bars", "members", "--top", "1", "--by", "volume", "--every", "3mo", "--window", "60d", *bars]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    # Volumes grow with the day and the place: BBB's are above AAA's, and CCC's above both once it is there.
    assert lines == [
        "instrument,from,to",
        "BBB,2020-04-01T00:00:00+00:00,2021-01-01T00:00:00+00:00",
        "CCC,2021-01-01T00:00:00+00:00,",
    ]
    assert "2 of 3 instruments were ever among the top 1 by volume, the first from 2020-04-01" in said.err
    source = source_of(tmp_path, lines[1:])
    assert [len(source.universe.members[f"file:{name}"]) for name in ("BBB", "CCC")] == [1, 1]


@pytest.mark.parametrize(
    ("option", "said"), [(("--every", "5mo"), "--every 5mo: give days"), (("--window", "1h"), "--window 1h: give")]
)
def test_periods_that_are_none_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, str], said: str
) -> None:
    bars = folder_of(tmp_path)[1::2]
    assert main(["bars", "members", "--top", "1", *option, *bars]) == 2
    assert said in capsys.readouterr().err
