"""Log lines: one event name and key=value pairs, once per change of state, never a payload or a key.

Lines go to standard error; the supervisor's configuration sends that to a file without a pipe, so that a stopped
supervisor cannot block the process that logs.
"""

import json
import logging
import re
import sys
import time

_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+-]+")


def line(event: str, **fields: object) -> str:
    """Returns `event key=value …`; values that are not plain words are quoted as JSON, cut at 500 characters."""
    return " ".join([event, *(f"{key}={_quoted(value)}" for key, value in fields.items())])


def _quoted(value: object) -> str:
    text = str(value)[:500]
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def setup(process: str, level: str) -> None:
    """Sends the root logger to standard error as `<time> <LEVEL> <process> <line>`, times in UTC."""
    formatter = logging.Formatter(f"%(asctime)s.%(msecs)03dZ %(levelname)s {process} %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=level, force=True)
