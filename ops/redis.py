"""`spillway redis`: sends one command to the running stack's Redis and prints the reply, as redis-cli would."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing

import redis

from app import stream
from app.settings import Settings
from ops.errors import StackFailed
from ops.stack import Stack

_TIMEOUT_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `redis`."""
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="WORD", help="e.g. XLEN log_events (PING)")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Returns 0, or 1 where Redis refuses the command.

    Raises:
        StackFailed: Nothing runs.
        StreamUnavailable: Redis does not answer.
    """
    stack = Stack(settings.state)
    if not stack.is_up():
        raise StackFailed(f"nothing runs in {stack.state}; `spillway up` starts it")
    pool = stream.pool(stack.facts().redis_url, _TIMEOUT_S)
    with closing(pool), stream.translated():
        connection = pool.get_connection()
        try:
            # As Redis sends it: the client would make other types of it.
            connection.send_command(*args.words or ["PING"])
            print("\n".join(shown(connection.read_response())))
        except redis.ResponseError as error:
            print(f"spillway: {error}", file=sys.stderr)
            return 1
    return 0


def shown(reply: object, indent: str = "") -> Iterator[str]:
    """Yields the lines of a reply: an array's elements one by one, arrays within it further in."""
    if isinstance(reply, list):
        for one in reply:
            yield from shown(one, indent + "  " * isinstance(one, list))
        return
    text = reply.decode(errors="backslashreplace") if isinstance(reply, bytes) else str(reply)
    for line in ["(nil)"] if reply is None else text.splitlines() or [""]:
        yield indent + "".join(one if one.isprintable() else repr(one)[1:-1] for one in line)
