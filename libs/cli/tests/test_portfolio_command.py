"""`tradeloop portfolio`: what it writes is what `train` trains for, and what it refuses it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tradeloop.cli.main import main
from tradeloop.cli.source import open_source
from tradeloop.common.portfolio import read_portfolio
from tradeloop.common.strategy import load


def bars(folder: Path, name: str = "gold.csv") -> Path:
    path = folder / name
    rows = [f"{1_735_689_600 + 3600 * i},100,101,99,{100 + i % 2},5" for i in range(60)]
    path.write_text("\n".join(["time,open,high,low,close,volume", *rows]))
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("tradeloop: "))
    return line


def test_it_prints_the_portfolio_that_train_trains_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = bars(tmp_path), tmp_path / "gold.yaml"
    assert main(["portfolio", "new", "--bars", str(file)]) == 0
    out.write_text(capsys.readouterr().out)
    strategy = load("example")
    assert read_portfolio(out) == open_source([str(file)], strategy).portfolio(strategy)
    assert main(["portfolio", "check", str(out)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"gold-(\w{6}) trades file:gold-\1 at 1h with example", said)


def test_it_writes_a_file_with_a_name_and_a_capital(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "books" / "mine.yaml"
    new = ["portfolio", "new", "--bars", str(bars(tmp_path)), "--out", str(out)]
    assert main([*new, "--name", "mine", "--capital", "5000"]) == 0
    portfolio = read_portfolio(out)
    assert (portfolio.name, portfolio.capital, portfolio.universe.name) == ("mine", 5000.0, "mine")
    assert portfolio.universe.ids == ("file:mine",)
    assert "is there already" in refused(capsys, *new)


@pytest.mark.parametrize(
    ("options", "says"), [(["--name", "No Name"], "--name No Name: "), (["--capital", "-1"], "--capital -1.0: ")]
)
def test_a_wrong_option_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    assert says in refused(capsys, "portfolio", "new", "--bars", str(bars(tmp_path)), *options)


def test_portfolios_of_one_stack_must_fit_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    assert main(["portfolio", "new", "--bars", f"gold={bars(tmp_path)}", "--out", str(first)]) == 0
    text = first.read_text()
    second.write_text(text)
    assert f"portfolio gold is in {first} too" in refused(capsys, "portfolio", "check", str(first), str(second))
    capsys.readouterr()
    second.write_text(text.replace("name: gold", "name: other", 1).replace("taker_bps: 2.0", "taker_bps: 3.0"))
    assert main(["portfolio", "check", str(first), str(second)]) == 2
    assert f"universe gold is another one in {first}" in " ".join(capsys.readouterr().err.split())
    second.write_text("name: x")
    assert f"{second}: universe: Field required" in refused(capsys, "portfolio", "check", str(second))


def test_a_folder_is_checked_as_the_stack_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "books"
    for name in ("gold", "silver"):
        given = f"{name}={bars(tmp_path)}"
        assert main(["portfolio", "new", "--bars", given, "--name", name, "--out", str(folder / f"{name}.yaml")]) == 0
    capsys.readouterr()
    assert main(["portfolio", "check", str(folder)]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        str(folder / "gold.yaml"),
        str(folder / "silver.yaml"),
    ]
    (folder / "bronze.yml").write_text("name: bronze")
    assert "name it bronze.yaml" in refused(capsys, "portfolio", "check", str(folder))
    (tmp_path / "empty").mkdir()
    assert "no portfolios in" in refused(capsys, "portfolio", "check", str(tmp_path / "empty"))


def test_train_for_a_portfolio_refuses_another_strategy_and_more_instruments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, book = bars(tmp_path), tmp_path / "gold.yaml"
    assert main(["portfolio", "new", "--bars", str(file), "--out", str(book)]) == 0
    train = ["train", "--bars", str(file), "--portfolio", str(book)]
    assert "--name says other: leave it out" in refused(capsys, *train, "--name", "other")
    assert "is for strategy example, --strategy says other" in refused(capsys, *train, "--strategy", "other")
    text = book.read_text()
    book.write_text(text.replace("  - id: file:gold", "  - id: file:silver\n  - id: file:gold", 1))
    assert "which of them gold is cannot be told: give ID=" in refused(capsys, *train)
    book.write_text(text.replace("id: file:gold-", "id: file:silver\n  - id: gold:", 1))
    train[2] = f"silver={file}"
    assert "has 2 instruments and --bars 1 of them: add --bars gold:" in refused(capsys, *train)
