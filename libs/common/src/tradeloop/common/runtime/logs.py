"""Logs: one JSON object a line for machines, plain lines for a terminal. Always on standard error."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping
from datetime import date
from types import TracebackType
from typing import Literal

import structlog
from pydantic import SecretBytes, SecretStr

from tradeloop.common.addresses import address, is_secret
from tradeloop.common.runtime import context

_PLAIN = (bool, int, float, type(None))

level = logging.INFO
"""The level of our own lines now. Those of libraries are never below INFO: what they say of each request helps nobody
who is not their author."""


def configure_logging(style: Literal["json", "plain"] = "json", level: int = logging.INFO) -> None:
    """Set up structlog and the standard library's logging alike. Times are UTC, ISO 8601.

    No line has a secret of this process or the credentials of a URL, whoever wrote it; each within the handling of a
    message says which one. In JSON, what ends the process or a thread is also a line of the log, with its traceback,
    and so are warnings.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _about,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendered: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        _without_secrets,
        structlog.processors.JSONRenderer() if style == "json" else structlog.dev.ConsoleRenderer(colors=False),
    ]
    structlog.configure(
        processors=[*shared, *rendered],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,  # so that the level can change
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    change_level(level)
    if style == "json":
        logging.setLogRecordFactory(_clean_record)
        logging.captureWarnings(True)
        sys.excepthook = _log_the_end
        threading.excepthook = _log_the_end_of_a_thread


def change_level(to: int) -> None:
    """Write lines from this level on from now on. With DEBUG, one for each message that is handled."""
    global level
    level = to
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(to))
    logging.getLogger().setLevel(max(to, logging.INFO))
    logging.getLogger("tradeloop").setLevel(to if to < logging.INFO else logging.NOTSET)
    context.every_message = to <= logging.DEBUG


def _about(
    logger: structlog.typing.WrappedLogger, method: str, line: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Say what is worked on, but for what the line says itself."""
    for name, word in context.words().items():
        line.setdefault(name, word)
    return line


def _without_secrets(
    logger: structlog.typing.WrappedLogger, method: str, line: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return {name: _shown(value, name) for name, value in line.items()}


def _shown(value: object, name: str = "") -> object:
    """A value as it may be shown: a secret by its type, by the name of its field, or within a text, is `***`."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, SecretStr | SecretBytes) or is_secret(name):
        return "***"
    if isinstance(value, str):
        return address(value)
    if isinstance(value, Mapping):
        return {address(key): _shown(each, str(key)) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_shown(each) for each in value]
    if isinstance(value, date):
        return value.isoformat()
    return address(value.decode(errors="replace") if isinstance(value, bytes) else repr(value))


def _clean_record(*args: object, **more: object) -> logging.LogRecord:
    """Take secrets out of what a library logs before anything can print it, a handler of its own included."""
    record = logging.LogRecord(*args, **more)  # type: ignore[arg-type]
    try:
        record.msg, record.args = address(record.getMessage()), None
    except Exception:  # noqa: BLE001  whatever a library hands over
        record.msg, record.args = f"a line that cannot be written: {address(repr(record.msg))}", None
    if record.exc_info and record.exc_info[0] is not None:
        record.exc_text = address(logging.Formatter().formatException(record.exc_info))
    return record


def _log_the_end(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    structlog.get_logger(__name__).critical("failed", error=str(error), exc_info=(kind, error, traceback))


def _log_the_end_of_a_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
        name = ended.thread.name if ended.thread is not None else ""
        why = (ended.exc_type, ended.exc_value, ended.exc_traceback)
        log = structlog.get_logger(__name__)
        log.error("a thread ended", thread=name, error=str(ended.exc_value), exc_info=why)
