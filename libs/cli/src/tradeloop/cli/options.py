"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

UniverseName = Annotated[
    str | None,
    typer.Option(
        "--name",
        help="Name of the universe, and so of its model and of what a home keeps. Without it: the file's, and some "
        "letters that another content of the file changes.",
    ),
]
Also = Annotated[
    list[str] | None,
    typer.Option(
        "--also",
        help="One more market to learn from, of one instrument and the same timeframe: FILE or NAME=FILE; again for "
        "each. The model is that of --bars, and so are costs and sizes.",
    ),
]
Promote = Annotated[
    bool,
    typer.Option(
        "--promote", help="Make the model champion even where it does not beat cash and buy-and-hold; recorded."
    ),
]
Wait = Annotated[
    bool,
    typer.Option(
        "--wait/--no-wait", help="Whether to wait for the model, or to ask the running stack, which then goes on alone."
    ),
]
Actions = Annotated[
    Path | None,
    typer.Option(
        "--actions",
        help="CSV file of splits and dividends (instrument, ex_date, kind, value; known_at and zone if known): bars "
        "are adjusted by them, and the files stay as they are.",
    ),
]
AsKnown = Annotated[
    str | None,
    typer.Option(
        "--as-known", help="With --actions: only what was known by this time, ISO 8601, UTC. Without it: now."
    ),
]
Members = Annotated[
    Path | None,
    typer.Option(
        "--members",
        help="CSV file of who belongs to the universe in which times (instrument, from, to; zone if known; an empty to "
        "for still a member): only members are held, and cross-sections are of them. Without it: all always belong.",
    ),
]
Events = Annotated[
    Path | None,
    typer.Option(
        "--events",
        help="CSV file of halts, delistings and new symbols (instrument, time, kind: halt, resume, delisting or "
        "rename; proceeds of a delisting for each unit, symbol of a rename; zone where times name none). Without it: "
        "none.",
    ),
]
PortfolioFolder = Annotated[
    Path | None,
    typer.Option("--portfolios", envvar="TRADELOOP_PORTFOLIO_FOLDER", help="Folder of the stack's portfolios."),
]
