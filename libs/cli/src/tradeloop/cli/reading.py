"""The options that say how files of bars are read, the same ones for every command that reads one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from tradeloop.common.errors import UserError

if TYPE_CHECKING:
    from tradeloop.common.messages.ingest import Reading

_PANEL = "How files are read, where they do not show it"
_OPTIONS: dict[str, Any] = {
    "columns": Annotated[
        list[str] | None,
        typer.Option(
            "--columns",
            help="Columns by name or number, such as time=date,close=last; `clock` is the time of day beside a date.",
            rich_help_panel=_PANEL,
        ),
    ],
    "tz": Annotated[
        str | None,
        typer.Option("--tz", help="Zone of times that name none: America/New_York.", rich_help_panel=_PANEL),
    ],
    "time_unit": Annotated[
        str | None,
        typer.Option("--time-unit", help="Unit of times that are numbers: s, ms, us, ns.", rich_help_panel=_PANEL),
    ],
    "timeframe": Annotated[
        str | None, typer.Option("--timeframe", help="Length of the bars, such as 1m.", rich_help_panel=_PANEL)
    ],
    "dates": Annotated[
        str | None,
        typer.Option("--dates", help="day-first or month-first, of dates such as 01/02/2024.", rich_help_panel=_PANEL),
    ],
    "decimal": Annotated[
        str | None, typer.Option("--decimal", help="Decimal sign: . or the comma.", rich_help_panel=_PANEL)
    ],
    "separator": Annotated[
        str | None,
        typer.Option("--separator", help="Sign between cells: , ; | tab or space.", rich_help_panel=_PANEL),
    ],
    "repair": Annotated[
        list[str] | None,
        typer.Option(
            "--repair", help="zero-opens: take the close before for an open of 0, and say so.", rich_help_panel=_PANEL
        ),
    ],
    "keep": Annotated[
        list[str] | None,
        typer.Option(
            "--keep",
            help="A column of numbers that becomes a further column of the bars, for features to read: COLUMN, or "
            "NAME=COLUMN; again for each.",
            rich_help_panel=_PANEL,
        ),
    ],
}


def with_reading(command: Callable[..., None]) -> Callable[..., None]:
    """The command with these options in the place of its argument `reading`."""
    hints = get_type_hints(command, {**command.__globals__, "Reading": object}, include_extras=True)
    own = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if name != "reading"
    ]
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in _OPTIONS.items()
    ]

    @wraps(command)
    def with_options(*args: Any, **given: Any) -> None:
        reading = _reading(**{name: given.pop(name, None) for name in _OPTIONS})
        command(*args, reading=reading, **given)

    del with_options.__wrapped__  # its signature would be taken
    with_options.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]
    with_options.__annotations__ = {one.name: one.annotation for one in (*own, *more)}
    return with_options


def _reading(
    columns: list[str] | None,
    tz: str | None,
    time_unit: str | None,
    timeframe: str | None,
    dates: str | None,
    decimal: str | None,
    separator: str | None,
    repair: list[str] | None,
    keep: list[str] | None,
) -> Reading:
    """Raises `UserError` for a value that an option cannot have."""
    from pydantic import ValidationError

    from tradeloop.common.market import Timeframe
    from tradeloop.common.messages.ingest import Reading

    if timeframe is not None and timeframe not in list(Timeframe):
        raise UserError(f"--timeframe {timeframe}: give one of {', '.join(Timeframe)}")
    try:
        reading = Reading.model_validate(
            {
                "columns": _columns(columns or []),
                "zone": tz,
                "time_unit": time_unit,
                "timeframe": timeframe,
                "dates": dates,
                "decimal": decimal,
                "separator": {"\t": "tab", " ": "space", "\\t": "tab"}.get(separator or "", separator),
                "repair": tuple(repair or ()),
                "keep": _kept(keep or []),
            }
        )
    except ValidationError as error:
        fault = error.errors()[0]
        option = str(fault["loc"][0]).replace("_", "-").replace("zone", "tz")
        raise UserError(f"--{option} {fault['input']}: {fault['msg'].removeprefix('Value error, ')}") from error
    return reading


def _kept(values: list[str]) -> dict[str, str]:
    from tradeloop.common.market.columns import checked

    found: dict[str, str] = {}
    for value in values:
        name, sign, column = (part.strip() for part in value.partition("="))
        if not sign:
            name, column = re.sub(r"[^a-z0-9]+", "_", value.lower()).strip("_"), value.strip()
        try:
            checked([name])
        except ValueError as error:
            raise UserError(f"--keep {value}: {error}: say the name of it by NAME={column or 'COLUMN'}") from None
        if name in found:
            raise UserError(f"--keep {value}: {name} is {found[name]} already: give it another name by NAME=COLUMN")
        found[name] = column
    return found


def _columns(values: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for value in values:
        for part in value.split(","):
            name, sign, column = part.partition("=")
            if not sign or not column.strip():
                raise UserError(f"--columns {value}: give FIELD=NAME, such as time=date,close=last")
            found[name.strip()] = column.strip()
    return found
