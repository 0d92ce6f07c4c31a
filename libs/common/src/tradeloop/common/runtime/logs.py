"""Logs: one JSON object a line for machines, plain lines for a terminal. Always on standard error."""

from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import Literal

import structlog

from tradeloop.common.addresses import address


def configure_logging(style: Literal["json", "plain"] = "json", level: int = logging.INFO) -> None:
    """Set up structlog and the standard library's logging alike. Times are UTC, ISO 8601.

    No line has the credentials of a URL, whoever wrote it. In JSON, what ends the process is also a line of the log,
    with its traceback.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendered: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        _without_credentials,
        structlog.processors.JSONRenderer() if style == "json" else structlog.dev.ConsoleRenderer(colors=False),
    ]
    structlog.configure(
        processors=[*shared, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    if style == "json":
        sys.excepthook = _log_the_end


def _without_credentials(
    logger: structlog.typing.WrappedLogger, method: str, line: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return {name: address(value) if isinstance(value, str) else value for name, value in line.items()}


def _log_the_end(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    structlog.get_logger(__name__).critical("failed", error=str(error), exc_info=(kind, error, traceback))
