"""Structured logs through the standard library: lines or JSON under the `wisp` command, the host's business elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog
from structlog.stdlib import BoundLogger, ProcessorFormatter


class _Event(dict[str, Any]):
    """An event that reads well where nobody configured a formatter for it."""

    def __str__(self) -> str:
        return " ".join([str(self["event"]), *(f"{key}={value!r}" for key, value in self.items() if key != "event")])


def _readable(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return _Event(event)


def logger(name: str) -> BoundLogger:
    """What the module `name` logs with: an event, and its facts by keyword."""
    bound: BoundLogger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[structlog.stdlib.filter_by_level, _readable, ProcessorFormatter.wrap_for_formatter],
        wrapper_class=BoundLogger,
        cache_logger_on_first_use=False,
    )
    return bound


def log_to_stderr(*, as_json: bool) -> None:
    """Send this process's logs to stderr, one line each."""
    renderer: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        else [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    )
    # Plain tracebacks: prettier ones show local variables, and with them tokens and prompts.
    common: list[Any] = [structlog.stdlib.add_log_level, structlog.processors.TimeStamper(fmt="iso")]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder()],
            processors=[ProcessorFormatter.remove_processors_meta, *common, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("wisp").setLevel(logging.INFO)
