"""`tradeloop features online`: the current values of the online store, and how old they are."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from tradeloop.cli.commands.models import DEFAULT_HOME, Home
from tradeloop.common.errors import UserError


def online(
    universe_name: Annotated[str, typer.Option("--universe", help="Name of the universe.")],
    strategy_name: Annotated[
        str, typer.Option("--strategy", help="The strategy whose feature set is asked for.")
    ] = "example",
    portfolios: Annotated[
        Path | None,
        typer.Option(
            "--portfolios",
            envvar="TRADELOOP_PORTFOLIO_FOLDER",
            help="Folder of the stack's portfolios, which know their universes. Without it: those of the home.",
        ),
    ] = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Show the values that are current online, their bar's close, and how long ago that was.

    A home's store, or the one that PREPROCESS_FEATURE_ROOT, PREPROCESS_FEATURE_REGISTRY and
    PREPROCESS_FEATURE_ONLINE_STORE name. Exit 2 where nothing is stored.
    """
    from tradeloop.common.clock import SystemClock
    from tradeloop.common.feature_store.port import FeatureSetUnknown
    from tradeloop.common.market import from_us
    from tradeloop.common.strategy import load

    feature_set, clock = load(strategy_name).feature_set, SystemClock()
    universe = _universe(universe_name, portfolios, home)
    place, root, sections = _store(home)
    if not (root / "feature_store.yaml").exists():
        raise UserError(f"{place} has no features: run `tradeloop train`, or start preprocess, first")
    from tradeloop.common.feature_store.feast.store import FeastFeatureStore  # importing Feast takes seconds

    now = clock.now()
    with closing(FeastFeatureStore(root, clock, **sections)) as store:
        rows = []
        for instrument in universe:
            try:
                rows.append((instrument, store.read_online(feature_set.id, universe_name, (instrument,))))
            except FeatureSetUnknown:
                raise UserError(
                    f"feature set {feature_set.id} of strategy {strategy_name} is not in {place}: features of it were "
                    "never computed there; name another --strategy"
                ) from None
    typer.echo(f"{universe_name}, feature set {feature_set.id} in {place}")
    for instrument, found in rows:
        if not len(found.time_us):
            typer.echo(f"{instrument}: nothing is stored online")
            continue
        close = from_us(int(found.time_us[0]))
        typer.echo(f"{instrument}: bar closed {close.isoformat()}, {now - close} ago")
        for name, value in zip(found.names, found.values[0, 0].tolist(), strict=True):
            typer.echo(f"  {name:<32} {value!r}")
    if not any(len(found.time_us) for _, found in rows):
        raise UserError(f"nothing of {universe_name} is stored online in {place}: preprocess writes it with each bar")


def _universe(name: str, portfolios: Path | None, home: Path) -> tuple[str, ...]:
    """The ids of a universe's instruments."""
    from tradeloop.cli.homes import known_universe
    from tradeloop.common.portfolio import PortfolioSettings

    if portfolios is not None:
        known = {
            one.universe.name: one.universe for one in PortfolioSettings(portfolio_folder=portfolios).read_portfolios()
        }
        if name in known:
            return known[name].ids
        raise UserError(f"no portfolio in {portfolios} trades universe {name}: there are {', '.join(sorted(known))}")
    found = known_universe(home, name)
    if found is None:
        raise UserError(f"{home} knows no universe {name}: name another --home, or the --portfolios of a running stack")
    return found.ids


def _store(home: Path) -> tuple[str, Path, dict[str, dict[str, object]]]:
    """Where features are: words for it, the folder, and Feast's sections."""
    import json
    import os

    root = os.environ.get("PREPROCESS_FEATURE_ROOT")
    if root is None:
        return str(home), home / "features", {}
    sections: dict[str, dict[str, object]] = {}
    for name in ("registry", "online_store"):
        variable = f"PREPROCESS_FEATURE_{name.upper()}"
        if text := os.environ.get(variable):
            try:
                sections[name] = dict(json.loads(text))
            except (TypeError, ValueError):
                raise UserError(f"environment variable {variable}: this is no valid JSON") from None
    return root, Path(root), sections
