"""Logs as JSON: an object a line on standard error, for machines that gather them.

`behest serve --log-format json`, or BEHEST_LOG_FORMAT. The names are these, and stay:

    time       ISO 8601 in UTC, to the millisecond
    level      debug, info, warning, error, critical
    logger     behest, behest.requests, uvicorn.error, …
    event      log; request (an answer has ended); serving (what is said at the start)
    message    for people
    trace      of the request (`X-Trace-Id`), where there is one
    error      the type of an exception, and `where` the places that it came through; never its text, which
               may quote a prompt

and of a `request`: method, path (of the route, so without ids), status, seconds, bytes of the answer, and of
its caller tenant, project, key (an id). Prompts, answers, headers and bodies are in no line.
"""

from __future__ import annotations

import json
import logging
import logging.config
import os
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, Literal

from ..rules.checks import one_of

LogFormat = Literal["text", "json"]
ENV = "BEHEST_LOG_FORMAT"
REQUESTS = logging.getLogger("behest.requests")
"""A line for each request, at the level of info: where logs are text, there are none."""

_FIELDS = ("trace", "method", "path", "status", "seconds", "bytes", "tenant", "project", "key")


class JSONLines(logging.Formatter):
    """A record as an object."""

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": _moment(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": getattr(record, "event", "log"),
            "message": record.getMessage(),
        }
        for name in _FIELDS:
            value = getattr(record, name, None)
            if value is not None:
                said[name] = value
        if record.exc_info and record.exc_info[0] is not None:
            said["error"] = record.exc_info[0].__name__
            said["where"] = [line.strip() for line in traceback.format_tb(record.exc_info[2])]
        return json.dumps(said, ensure_ascii=False, default=str)


def _moment(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"


def chosen(said: str | None) -> LogFormat:
    """The format that is meant: what was said, else the environment's, else text.

    Raises:
        ConfigError: it is another.
    """
    found = said or os.environ.get(ENV) or "text"
    one_of(found, ("text", "json"), "--log-format" if said else ENV)
    return "json" if found == "json" else "text"


def as_json() -> Mapping[str, Any]:
    """What `logging.config` takes; also each worker's, by way of uvicorn."""
    handler = {"class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": "json"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": f"{__name__}.JSONLines"}},
        "handlers": {"json": handler},
        "root": {"handlers": ["json"], "level": "WARNING"},
        "loggers": {
            "behest": {"level": "INFO"},
            "uvicorn": {"handlers": [], "level": "WARNING", "propagate": True},
            "uvicorn.access": {"handlers": [], "level": "WARNING", "propagate": True},
        },
    }


def begin(form: LogFormat) -> dict[str, Any] | None:
    """Log in this format from now on; what uvicorn is to be given, None: its own."""
    if form == "text":
        return None
    said = dict(as_json())
    logging.config.dictConfig(said)
    return said


def serving(line: str) -> None:
    """What is said at the start, as a line of the log."""
    record = logging.LogRecord("behest", logging.INFO, "", 0, line, (), None)
    record.event = "serving"
    print(JSONLines().format(record), file=sys.stderr, flush=True)


def answered(
    *, trace: str, method: str, path: str, status: int, seconds: float, sent: int, caller: Any
) -> None:
    """A request has been answered, or its client has left."""
    key = getattr(caller, "key", None)
    extra = {
        "event": "request", "trace": trace, "method": method, "path": path, "status": status,
        "seconds": round(seconds, 6), "bytes": sent, "key": key,
        "tenant": getattr(caller, "tenant", None), "project": getattr(caller, "project", None),
    }  # fmt: skip
    REQUESTS.info("%s %s %d", method, path, status, extra=extra)
