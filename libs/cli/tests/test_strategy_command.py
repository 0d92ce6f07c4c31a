"""`tradeloop strategy`: new, check and list, from an empty folder to a strategy that is found installed."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tradeloop.cli.commands.strategy import app
from tradeloop.common.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments: object) -> str:
    """The command's output. Raises what it raises."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def tradeloop(*arguments: str, packages: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, in which `packages` are installed too."""
    return subprocess.run(
        [sys.executable, "-m", "tradeloop.cli.main", "strategy", *arguments],
        env=os.environ | {"PYTHONPATH": str(packages), "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def install(package: Path, target: Path) -> None:
    """Build a package and install it, by whichever installer is there."""
    uv = shutil.which("uv") or next(map(str, ROOT.glob(".tools/uv-*/bin/uv")), None)
    if uv is None:
        assert importlib.util.find_spec("pip"), "neither uv nor pip is here: run the tests with `make test`"
    command = [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
    done = subprocess.run(
        [*command, "--no-deps", "--target", str(target), str(package)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_new_strategy_installs_and_keeps_its_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = run("new", "my-edge", "--into", tmp_path)
    package = tmp_path / "my-edge"
    assert sorted(str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()) == [
        "README.md",
        "pyproject.toml",
        "src/my_edge_strategy/__init__.py",
        "tests/test_my_edge_strategy.py",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["my-edge"], "something was left behind"
    first, second = output.strip().splitlines()[-2:]
    assert re.search(rf"pip install .*-e {re.escape(str(package))}$", first)
    assert second.strip() == "tradeloop strategy check my-edge"

    installed = tmp_path / "installed"
    install(package, installed)
    checked = tradeloop("check", "my-edge", packages=installed)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout.count("✓ ") == len(checked.stdout.splitlines()) == 12

    monkeypatch.syspath_prepend(installed)
    assert (
        "my-edge  (my_edge_strategy:strategy)\n  features  log_return_1, log_return_5, log_return_20, rsi_14, "
        in run("list")
    )
    runpy.run_path(str(package / "tests/test_my_edge_strategy.py"))["test_it_keeps_its_promises"]()


def test_a_new_strategy_is_written_for_the_linter(tmp_path: Path) -> None:
    run("new", "a2_b", "--into", tmp_path)
    project = tomllib.loads((tmp_path / "a2_b/pyproject.toml").read_text())
    assert project["project"]["name"] == "a2-b-strategy"
    assert project["project"]["entry-points"]["tradeloop.strategies"] == {"a2_b": "a2_b_strategy:strategy"}
    ruff = [sys.executable, "-m", "ruff"]
    options = ["--isolated", "--no-cache", "."]
    for command in ([*ruff, "check", "--select", "E,F,I,UP", *options], [*ruff, "format", "--check", *options]):
        done = subprocess.run(command, cwd=tmp_path / "a2_b", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["", "My", "2ma", "a b", "a--b", "a-", "-a", "../a", "a.b", "é", "a" * 64])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        UserError, match=f"^{re.escape(repr(name))} is no name for a strategy: use at most 63"
    ) as raised:
        run("new", "--into", tmp_path, "--", name)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match=r"mine is there already: choose another name, or another folder with --into$"):
        run("new", "mine", "--into", tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="dangling is there already"):
        run("new", "dangling", "--into", tmp_path)
    assert list((tmp_path / "mine").iterdir()) == []


def test_names_that_are_taken_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^a strategy example is installed already \(example_strategy:strategy\)"):
        run("new", "example", "--into", tmp_path)
    with pytest.raises(UserError, match=r"^a package example_strategy is installed already"):
        run("new", "example-strategy", "--into", tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing/mine: No such file or directory; choose another folder with --into$"):
        run("new", "mine", "--into", tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/mine: Not a directory"):
        run("new", "mine", "--into", tmp_path / "file")


def test_the_example_is_listed() -> None:
    lines = run("list").splitlines()
    start = lines.index("example  (example_strategy:strategy)")
    told = dict(line.split(maxsplit=1) for line in lines[start + 1 : start + 6])
    assert set(told) == {"features", "window", "actions", "reward", "trained"}
    assert "log_return_5, " in told["features"]
    assert re.search(r"^DrawdownAverse\(.*\), rw_[0-9a-f]{12}$", told["reward"])


BROKEN = """
from tradeloop.common.strategy import Strategy, log_return, reward

@reward(version="1")
class Ratio:
    def __call__(self, c):
        return c.traded_notional / c.turnover

strategy = Strategy("broken", [log_return(1)], Ratio())
"""


def test_broken_strategies_are_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulates installed packages: modules, and the entry points that their metadata would name."""
    (tmp_path / "broken_module.py").write_text(BROKEN)
    metadata = tmp_path / "broken-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[tradeloop.strategies]\nbroken = broken_module:strategy\ngone = gone_module:strategy\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    listed = run("list")
    assert (
        "gone  (gone_module:strategy)\n  broken    strategy gone: gone_module:strategy cannot be loaded: "
        "ModuleNotFoundError: No module named 'gone_module'\n"
    ) in listed
    assert "example  (example_strategy:strategy)" in listed
    for name, message in (
        ("broken", "^strategy broken is wrong: reward Ratio returned a value that is not finite in reward: guard its"),
        ("brokn", r"^strategy brokn is not installed; did you mean broken\?$"),
    ):
        with pytest.raises(UserError, match=message):
            run("check", name)

    checked = tradeloop("check", "gone", packages=tmp_path)
    assert checked.returncode == 2
    [line] = checked.stderr.splitlines()
    assert line.startswith("tradeloop: strategy gone: gone_module:strategy cannot be loaded: ModuleNotFoundError")


def packaged(folder: Path, name: str, source: str) -> None:
    """What an installed package leaves in a folder: its module, and metadata with its entry point."""
    (folder / f"{name}_module.py").write_text(source)
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[tradeloop.strategies]\n{name} = {name}_module:strategy\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ('parameters={"gamma": 1.5}', "PPO: parameter gamma is 1.5; it should be less than or equal to 1"),
        ('parameters={"n_steps": "many"}', "PPO: parameter n_steps is 'many'; it should be a valid integer"),
        (
            'parameters={"net_arch": 64}',
            "PPO: parameter net_arch is 64; it should be the widths of hidden layers, whole",
        ),
        ('parameters={"books": 0}', "PPO: parameter books is 0; it should be greater than or equal to 1"),
        ('parameters={"episode_bars": 0}', "PPO: parameter episode_bars is 0; it should be greater than or equal to 1"),
        ('algorithm="SAC"', "there is no algorithm 'SAC'; take one of PPO, A2C"),
    ],
)
def test_a_wrong_hyper_parameter_is_one_line_and_nothing_starts(tmp_path: Path, arguments: str, line: str) -> None:
    source = BROKEN.replace('strategy = Strategy("broken"', 'strategy = Strategy("wild"')
    packaged(tmp_path, "wild", source.replace("Ratio())", f"Ratio(), {arguments})"))
    checked = tradeloop("check", "wild", packages=tmp_path)
    assert (checked.returncode, checked.stdout) == (2, "")
    [said] = checked.stderr.splitlines()
    assert said.startswith("tradeloop: strategy wild: ")
    assert line in said


LEVEL = """
from tradeloop.common.strategy import Strategy, reward, talib

@reward(version="1")
class Gain:
    def __call__(self, c):
        return c.equity - c.equity_prev

strategy = Strategy("level", [talib("SMA", timeperiod=5)], Gain())
"""


def test_warnings_are_printed_and_break_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged(tmp_path, "level", LEVEL)
    monkeypatch.syspath_prepend(tmp_path)
    *promises, warning = run("check", "level").splitlines()
    assert len(promises) == 12
    assert all(line.startswith("✓ ") for line in promises)
    assert warning.startswith("Warning: strategy level: features that follow the price: sma_5 (with all prices")
    checked = tradeloop("check", "level", packages=tmp_path)
    assert (checked.returncode, checked.stderr, checked.stdout.splitlines()[-1]) == (0, "", warning)


def test_leverage_is_an_option(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"asks for 1 times the equity, and max_position of its portfolio is 0\.5"):
        run("check", "example", "--max-leverage", "0.5")
    assert "✓ " in run("check", "example", "--max-leverage", "2")
