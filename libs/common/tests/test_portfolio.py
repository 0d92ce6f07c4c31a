"""Portfolios as YAML files: what is read is what was written, and a wrong file is told in one line."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tradeloop.common.errors import UserError
from tradeloop.common.market import BarArrays, Instrument, Timeframe, Universe, align
from tradeloop.common.portfolio import Costs, Portfolio, PortfolioSettings, RiskLimits, portfolio_yaml, read_portfolio

UNIVERSE = Universe(
    name="majors",
    instruments=(Instrument(id="binance:BTC/USDT", lot_size=1e-5), Instrument(id="binance:ETH/USDT")),
    timeframe=Timeframe.M1,
    higher_timeframes=(Timeframe.M5, Timeframe.H1),
)


def book(name: str = "book") -> Portfolio:
    limits = RiskLimits(max_leverage=2.0)
    return Portfolio(
        name=name, universe=UNIVERSE, strategy="example", costs=Costs(slippage_bps=0.1 + 0.2), limits=limits
    )


def test_a_portfolio_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "book.yaml"
    path.write_text(portfolio_yaml(book()))
    assert read_portfolio(path) == book()
    assert "capital" not in path.read_text(), "what is as it is by default need not be said"


def test_a_service_has_those_of_its_variable_and_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(portfolio_yaml(book("b")))
    (tmp_path / "a.yaml").write_text(portfolio_yaml(book("a")))
    settings = PortfolioSettings(portfolios=(book("z"),), portfolio_folder=tmp_path)
    assert [portfolio.name for portfolio in settings.read_portfolios()] == ["z", "a", "b"]
    twice = PortfolioSettings(portfolios=(book("a"),), portfolio_folder=tmp_path)
    with pytest.raises(UserError, match="portfolio a is there twice"):
        twice.read_portfolios()
    assert PortfolioSettings(portfolios=()).read_portfolios() == (), "none is meant"


@pytest.mark.parametrize(
    ("folder", "says"),
    [(None, "no portfolios: name a folder"), ("missing", "no such folder"), ("empty", "no portfolios in ")],
)
def test_H1_a_service_without_portfolios_does_not_start(tmp_path: Path, folder: str | None, says: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".hidden.yaml").write_text("")
    with pytest.raises(UserError, match=says):
        PortfolioSettings(portfolio_folder=tmp_path / folder if folder else None).read_portfolios()


@pytest.mark.parametrize("name", ["book.yml", "book.YAML"])
def test_H1_a_file_that_would_be_passed_over_is_refused(tmp_path: Path, name: str) -> None:
    for each in ("a.yaml", name):
        (tmp_path / each).write_text(portfolio_yaml(book()))
    with pytest.raises(UserError, match=rf"{name} would not be read: name it book\.yaml"):
        PortfolioSettings(portfolio_folder=tmp_path).read_portfolios()


def test_H1_other_files_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.yaml", "a.yaml.bak", "readme.txt", ".hidden"):
        (tmp_path / name).write_text(portfolio_yaml(book()))
    assert len(PortfolioSettings(portfolio_folder=tmp_path).read_portfolios()) == 1
    [said] = [record.getMessage() for record in caplog.records]
    assert said == f"{tmp_path}: not read, as no portfolio: a.yaml.bak, readme.txt"


BITCOIN, ETHER = UNIVERSE.instruments


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"timeframe": Timeframe.M5, "higher_timeframes": (Timeframe.H1,)}, "timeframe 1m and 5m"),
        ({"higher_timeframes": ()}, "higher_timeframes 5m 1h and none"),
        (
            {"instruments": (ETHER, BITCOIN)},
            "instruments, in this order, binance:BTC/USDT binance:ETH/USDT and binance:ETH/USDT binance:BTC/USDT",
        ),
        ({"instruments": (BITCOIN,)}, "instruments, in this order, binance:BTC/USDT binance:ETH/USDT and binance:BTC"),
        (
            {"instruments": (BITCOIN, ETHER.model_copy(update={"tick_size": 0.5}))},
            "tick_size of binance:ETH/USDT 0.0 and 0.5",
        ),
        (
            {"instruments": (BITCOIN.model_copy(update={"calendar": "weekdays"}), ETHER)},
            "calendar of binance:BTC/USDT continuous and weekdays",
        ),
    ],
)
def test_H1_two_definitions_of_one_universe_are_refused(changed: dict[str, object], difference: str) -> None:
    other = book("other").model_copy(update={"universe": UNIVERSE.model_copy(update=changed)})
    elsewhere = book("elsewhere").model_copy(update={"universe": UNIVERSE.model_copy(update={"name": "minors"})})
    assert PortfolioSettings(portfolios=(book(), elsewhere, book("same"))).read_portfolios()
    with pytest.raises(UserError) as caught:
        PortfolioSettings(portfolios=(book(), elsewhere, other)).read_portfolios()
    assert str(caught.value).startswith(f"portfolios book and other define universe majors differently: {difference}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: [unclosed", "no valid YAML"),
        ("", "the file: Input should be a valid dictionary"),
        ("name: book\nstrategy: example", "universe: Field required"),
        (portfolio_yaml(book()) + "capitol: 5\n", "capitol: Extra inputs are not permitted"),
        (portfolio_yaml(book()) + "capital: -5\n", "capital: Input should be greater than 0"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "book.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_portfolio(path)
    assert str(caught.value).startswith(f"{path}: {says}")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.yaml: No such file"):
        read_portfolio(tmp_path / "nothing.yaml")


def bars(*volumes: list[float]) -> BarArrays:
    """Bars of instruments with these volumes; infinite stands for no bar."""
    series = []
    for column in volumes:
        there = np.isfinite(column) | np.isnan(column)
        price = np.full(int(there.sum()), 100.0)
        times = Timeframe.M1.us * np.flatnonzero(there)
        prices = dict.fromkeys(("open", "high", "low", "close"), price)
        series.append({"open_us": times, **prices, "volume": np.array(column)[there]})
    return align([f"test:{a}" for a in range(len(volumes))], Timeframe.M1, series)


@pytest.mark.parametrize(
    ("costs", "volumes", "said"),
    [
        (Costs(), [[math.nan] * 4], ""),
        (Costs(slippage_bps=5.0, fee_multiplier=2.0), [[math.nan] * 4], ""),
        (Costs(impact_bps=5.0, max_participation=0.1), [[1.0, 2.0, math.inf, 3.0], [1.0] * 4], ""),
        (
            Costs(impact_bps=5.0),
            [[math.nan] * 4],
            "4 of 4 bars have no volume (test:0), and impact_bps of the costs counts for nothing there",
        ),
        (
            Costs(max_participation=0.1),
            [[1.0, 2.0, 3.0, 4.0], [1.0, math.nan, math.inf, 4.0]],
            "1 of 7 bars have no volume (test:1), and max_participation of the costs counts for nothing there",
        ),
        (
            Costs(impact_bps=5.0, max_participation=0.1),
            [[math.nan, 1.0]] * 5,
            "5 of 10 bars have no volume (test:0, test:1, test:2 and 2 more), and impact_bps and max_participation of "
            "the costs count for nothing there",
        ),
        (
            Costs(impact_bps=5.0),
            [[0.0, 1.0, 0.0]],
            "2 of 3 bars have no volume (test:0), and impact_bps of the costs counts for nothing there",
        ),
        (Costs(impact_bps=5.0, max_participation=0.1), [[0.0, 1.0, 0.0]], ""),
    ],
)
def test_costs_that_need_a_volume_say_where_there_is_none(costs: Costs, volumes: list[list[float]], said: str) -> None:
    assert costs.uncharged(bars(*volumes)) == said
