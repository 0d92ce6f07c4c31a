"""A portfolio as its owner configures it: capital, universe, strategy, model alias, costs and risk limits."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tradeloop.common.arrays import Bools
from tradeloop.common.errors import UserError
from tradeloop.common.market import BarArrays, Name, Universe
from tradeloop.common.market.event_file import read_events
from tradeloop.common.market.member_file import read_members

log = logging.getLogger(__name__)


class Costs(BaseModel):
    """The costs of trading beyond the venue's fees, as the simulator charges them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slippage_bps: float = Field(default=1.0, ge=0)
    """Paid on each fill against the bar's open, in basis points."""
    impact_bps: float = Field(default=0.0, ge=0)
    """Added slippage for taking a whole bar's volume; scales with the square root of the share taken. Volumes
    must be in base units. A bar without a volume, or with one of 0, adds nothing. No sale brings less than 0."""
    max_participation: float | None = Field(default=None, gt=0, le=1)
    """Largest share of a bar's volume that one order may take; the rest is cancelled. None for no cap. Only
    meaningful where volumes are in base units. A bar without a volume has no cap; one with a volume of 0 fills
    nothing."""
    fee_multiplier: float = Field(default=1.0, ge=0)
    """Scales the venue's fees: 0 for a world without, 2 or 5 for a stress."""

    def uncharged(self, bars: BarArrays) -> str:
        """The bars that lack the volume which these costs are reckoned by, in words for people; empty for none.

        There, orders fill in whole and without impact, which looks better than it is.
        """
        named = [name for name in ("impact_bps", "max_participation") if getattr(self, name)]
        lacking: Bools = bars.present & ~(bars.volume >= 0.0)
        if self.max_participation is None:
            lacking = lacking | (bars.present & (bars.volume == 0.0))  # with a cap, nothing fills there
        count = int(lacking.sum())
        if not named or not count:
            return ""
        verb = "counts" if len(named) == 1 else "count"
        whose = [one for one, column in zip(bars.instruments, lacking.T, strict=True) if column.any()]
        of = ", ".join(whose[:3]) + (f" and {len(whose) - 3} more" if len(whose) > 3 else "")
        return (
            f"{count:,} of {int(bars.present.sum()):,} bars have no volume ({of}), and {' and '.join(named)} of the "
            f"costs {verb} for nothing there"
        )


class RiskLimits(BaseModel):
    """Hard limits that every order passes, the same ones in training, backtest and live."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_position: float = Field(default=1.05, gt=0)
    """Largest value of one position, as a multiple of equity."""
    max_leverage: float = Field(default=1.05, gt=0)
    """Largest sum of absolute position values, as a multiple of equity."""
    max_order_notional: float | None = Field(default=None, gt=0)
    """Largest value of an order that opens exposure, as a multiple of the equity at that moment. A flip from long to
    short takes twice the leverage, so that is the default, with a fifth to spare: 2.4 times `max_leverage`. An order
    that only reduces a position is never too large; a flip that is too large closes the position."""
    max_drawdown: float = Field(default=0.5, gt=0, le=1)
    """Fall from the peak of equity, unrealised included, that flattens the book and halts it."""
    max_price_age_bars: int = Field(default=0, ge=0)
    """How many frames an instrument may have missed before its price is stale and its orders are denied."""
    maintenance_margin: float = Field(default=0.05, ge=0, le=1)
    """Equity below this share of gross position value, or no equity left, is a margin call: flattened and halted. It
    is what is named where the drawdown breaks its limit too."""

    @property
    def largest_order(self) -> float:
        """The limit of an order's value in force, as a multiple of equity."""
        return 2.4 * self.max_leverage if self.max_order_notional is None else self.max_order_notional


class Portfolio(BaseModel):
    """One book: what it trades, with which policy, under which limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    universe: Universe
    strategy: Name
    model_alias: Name = "champion"
    """The policy that trades: `champion` is the newest that passed the gate, `candidate` the newest of all."""
    capital: float = Field(default=100_000.0, gt=0)
    """Starting cash, in quote currency."""
    account: Name = "paper"
    mode: Literal["paper"] = "paper"
    decision_within: float = Field(default=0.5, gt=0, le=1)
    """Share of the timeframe after a live bar's close, within which its decision must be there. One that is not is
    missed, which is recorded, and the book goes on. A replayed bar waits for ever."""
    on_failure: Literal["hold", "flatten"] = "hold"
    """The fate of the positions when something fails for good and decisions are no longer taken: they stay as they are,
    or they are closed. Limits hold either way."""
    costs: Costs = Costs()
    limits: RiskLimits = RiskLimits()


class PortfolioSettings(BaseModel):
    """The portfolios of a service, as part of its settings."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    portfolios: tuple[Portfolio, ...] | None = None
    """Portfolios, as JSON; `[]` where none is meant."""
    portfolio_folder: Path | None = None
    """A folder of more portfolios, one YAML file each."""

    def read_portfolios(self) -> tuple[Portfolio, ...]:
        """All portfolios: the given ones, then those of the folder by file name.

        Raises `UserError` for a folder without any, where none are given, and where two contradict each other: a
        service without its portfolios would take their messages for settled.
        """
        if self.portfolios is None and self.portfolio_folder is None:
            raise UserError("no portfolios: name a folder that has a YAML file for each one in ..._PORTFOLIO_FOLDER")
        found = [*(self.portfolios or ()), *(_in_folder(self.portfolio_folder) if self.portfolio_folder else ())]
        twice = [name for name, count in Counter(portfolio.name for portfolio in found).items() if count > 1]
        if twice:
            raise UserError(f"portfolio {twice[0]} is there twice: give each portfolio a name of its own")
        _refuse_two_definitions(found)
        return tuple(found)


def portfolio_files(folder: Path) -> list[Path]:
    """The files of a folder that services read as portfolios, by name; others are named in the log.

    Raises `UserError` for a folder without any, or with one that looks like one and would not be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: make it, with a YAML file for each portfolio")
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    for path in entries:
        if path.suffix != ".yaml" and path.suffix.lower() in (".yaml", ".yml"):
            raise UserError(f"{path} would not be read: name it {path.stem}.yaml")
    files = [path for path in entries if path.suffix == ".yaml"]
    if ignored := [path.name for path in entries if path not in files]:
        log.warning("%s: not read, as no portfolio: %s", folder, ", ".join(ignored))
    if not files:
        raise UserError(f"no portfolios in {folder}: put a YAML file for each one there")
    return files


def _in_folder(folder: Path) -> list[Portfolio]:
    return [read_portfolio(path) for path in portfolio_files(folder)]


def _refuse_two_definitions(portfolios: Sequence[Portfolio]) -> None:
    """One universe is one key of messages: two portfolios that trade it mean the same bars."""
    first: dict[str, Portfolio] = {}
    for portfolio in portfolios:
        other = first.setdefault(portfolio.universe.name, portfolio)
        if difference := _difference(other.universe, portfolio.universe):
            raise UserError(
                f"portfolios {other.name} and {portfolio.name} define universe {portfolio.universe.name} differently: "
                f"{difference}; let them agree, or give one of the universes another name"
            )


def _difference(one: Universe, other: Universe) -> str:
    """The first thing in which two definitions of a universe differ, in words; empty where they do not."""
    for what, a, b in (
        ("timeframe", one.timeframe, other.timeframe),
        ("higher_timeframes", " ".join(one.higher_timeframes), " ".join(other.higher_timeframes)),
        ("instruments, in this order,", " ".join(one.ids), " ".join(other.ids)),
        ("members, with the digest", one.members_id, other.members_id),
        ("events, with the digest", one.events_id, other.events_id),
    ):
        if a != b:
            return f"{what} {a or 'none'} and {b or 'none'}"
    for a_rules, b_rules in zip(one.instruments, other.instruments, strict=True):
        for field in type(a_rules).model_fields:
            a, b = getattr(a_rules, field), getattr(b_rules, field)
            if a != b:
                return f"{field} of {a_rules.id} {a} and {b}"
    return ""


def read_portfolio(path: Path) -> Portfolio:
    """A portfolio from its YAML file. Raises `UserError`, one line that names the file, the field and what is wrong.

    `members` and `events` of its universe may be paths of files, from the folder of this one on.
    """
    try:
        content = yaml.safe_load(path.read_bytes())
        return Portfolio.model_validate(_with_events(path, _with_members(path, content)))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: no valid YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path}: {where}: {first['msg']}") from error


def _with_members(path: Path, content: Any) -> Any:
    """The content of a YAML file, with the memberships of the file that it names for its universe."""
    universe = content.get("universe") if isinstance(content, dict) else None
    if not isinstance(universe, dict) or not isinstance(universe.get("members"), str):
        return content
    file = read_members(path.parent / universe["members"], f"{path}: universe.members")
    listed = [str(one.get("id")) for one in universe.get("instruments") or () if isinstance(one, dict)]
    symbols = {id_.partition(":")[2]: id_ for id_ in listed}
    if strangers := [name for name in file.members if name not in listed and name not in symbols]:
        raise UserError(
            f"{path}: {file.path} has memberships of {', '.join(strangers[:3])}, which is no instrument of it"
        )
    members = {name if name in listed else symbols[name]: stays for name, stays in file.members.items()}
    return {**content, "universe": {**universe, "members": members}}


def _with_events(path: Path, content: Any) -> Any:
    """The content of a YAML file, with the events of the file that it names for its universe."""
    universe = content.get("universe") if isinstance(content, dict) else None
    if not isinstance(universe, dict) or not isinstance(universe.get("events"), str):
        return content
    file = read_events(path.parent / universe["events"], f"{path}: universe.events")
    listed = [str(one.get("id")) for one in universe.get("instruments") or () if isinstance(one, dict)]
    events = {}
    for name, ones in file.events.items():
        called = file.names[name]
        ids = [id_ for id_ in listed if id_ in called or id_.partition(":")[2] in called]
        if len(ids) != 1:
            what = f"may be {' or '.join(ids)}" if ids else "is no instrument of it"
            raise UserError(f"{path}: {file.path} has events of {name}, which {what}")
        events[ids[0]] = [one.model_dump(mode="json") for one in ones]
    return {**content, "universe": {**universe, "events": events}}


def portfolio_yaml(portfolio: Portfolio) -> str:
    """A portfolio as its YAML file: what differs from the defaults."""
    return yaml.safe_dump(portfolio.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
