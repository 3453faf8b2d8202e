"""The dead letters on the admin listener: to look at, to replay and to purge. What they hold was sent by strangers."""

import logging
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import falcon
import msgspec
from falcon import Request, Response

from app import body, letter_filter, log
from app.dead_letter import REASONS
from app.errors import Rejected
from app.inspector import answering, read_limit, read_query
from app.letter_filter import Filter
from app.letterbox import Letterbox, Report

logger = logging.getLogger(__name__)

_DEFAULT_LIMIT = 100
_MAX_ORDER_BYTES = 1 << 20
_MAX_IDS = 10_000
_MEMBERS = (
    f"members are reason (one of {', '.join(REASONS)}), service, batch (a UUID), since (RFC 3339, or a duration: 90s, "
    f"15m, 2h, 3d), ids (1 to {_MAX_IDS} letter ids), dry_run and all (true or false)"
)


class Order(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a request asks for; what is not there, or null, was not asked."""

    reason: str | None = None
    service: str | None = None
    since: str | None = None
    batch: str | None = None
    ids: Annotated[list[str], msgspec.Meta(min_length=1, max_length=_MAX_IDS)] | None = None
    dry_run: bool = False
    all: bool = False


class DeadLetters:
    """`GET /dead-letters`: what is known of each letter, without its events."""

    def __init__(self, letterbox: Letterbox) -> None:
        self._letterbox = letterbox

    def on_get(self, req: Request, resp: Response) -> None:
        """Answers 200 with up to `limit` letters that the query matches, and `next`, to be given as `after`."""
        query = read_query(req, "limit", "after", "reason", "service", "since", "batch")
        limit = read_limit(query, 1, _DEFAULT_LIMIT)
        try:
            after = letter_filter.read_id(query["after"]) if "after" in query else ""
            wanted = self._wanted(query)
        except ValueError as error:
            raise Rejected(400, "query", str(error)) from error
        with answering():
            found = self._summaries(wanted, after, limit + 1)
        following = found[limit - 1]["letter_id"] if len(found) > limit else None
        resp.data = msgspec.json.encode({"letters": found[:limit], "next": following})

    def _wanted(self, query: Mapping[str, str]) -> Filter:
        reason, service, batch, since = map(query.get, ("reason", "service", "batch", "since"))
        with answering():
            return letter_filter.read(reason, service, batch, since, (), self._letterbox.now_ms)

    def _summaries(self, wanted: Filter, after: str, limit: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for letters in self._letterbox.pages(wanted, after):
            found += [letter.summary() for letter in letters[:limit - len(found)]]
            if len(found) == limit:
                break
        return found


class DeadLetter:
    """`GET /dead-letters/<id>`: one letter with its events."""

    def __init__(self, letterbox: Letterbox) -> None:
        self._letterbox = letterbox

    def on_get(self, req: Request, resp: Response, letter_id: str) -> None:
        """Answers 200, or 404."""
        read_query(req)
        try:
            named = letter_filter.read_id(letter_id)
        except ValueError as error:
            raise falcon.HTTPNotFound(description=str(error)) from error
        with answering():
            letter = self._letterbox.get(named)
        if letter is None:
            raise falcon.HTTPNotFound(description=f"there is no dead letter {named}: replayed, purged, or never made")
        resp.data = msgspec.json.encode(letter.document())


class Clearance:
    """`POST /dead-letters/replay` and `POST /dead-letters/purge`: all letters that the order names, in one request.

    Args:
        letterbox: Of the letters.
        verb: What is done with them, in the past tense; for the log.
        clear: Does it.
        is_destructive: What it takes away does not come back.
    """

    def __init__(
        self, letterbox: Letterbox, verb: str, clear: Callable[[Filter, Report, bool], None], is_destructive: bool
    ) -> None:
        self._letterbox = letterbox
        self._verb = verb
        self._clear = clear
        self._is_destructive = is_destructive

    def on_post(self, req: Request, resp: Response) -> None:
        """Answers 200 with how many letters and events it were, by reason, and how many letters were left."""
        order = _order(req)
        wanted = self._wanted(order)
        if self._is_destructive and wanted.is_empty and not order.all:
            raise Rejected(422, "no_filter", 'nothing says which letters: name them, or say "all": true')
        report = Report()
        try:
            with answering():
                self._clear(wanted, report, order.dry_run)
        except falcon.HTTPServiceUnavailable as error:
            error.description = f"{error.description}; {report.done.count} letters were {self._verb} before: go on"
            raise
        finally:
            self._note(req, order, report)
        resp.data = msgspec.json.encode(_document(report, order))

    def _wanted(self, order: Order) -> Filter:
        try:
            with answering():
                return letter_filter.read(
                    order.reason, order.service, order.batch, order.since, order.ids or (), self._letterbox.now_ms
                )
        except ValueError as error:
            raise Rejected(422, "order", f"{error}; {_MEMBERS}") from error

    def _note(self, req: Request, order: Order, report: Report) -> None:
        asked = {name: value for name, value in msgspec.structs.asdict(order).items() if value}
        logger.warning(log.line(
            f"dead_letters_{self._verb}", by=req.remote_addr, letters=report.done.count,
            events=report.done.events.total(), left=report.left.count, order=msgspec.json.encode(asked).decode(),
        ))


def _order(req: Request) -> Order:
    """Returns the body's order.

    Raises:
        Rejected: It is none. 415 where it is not announced as JSON: a page of another origin can send anything else
            without asking first.
    """
    media_type = (req.content_type or "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Rejected(415, "media_type", f"Content-Type {media_type[:80]!r} is not application/json")
    length = None if "HTTP_TRANSFER_ENCODING" in req.env else req.content_length or 0
    sent = body.read(req.env["wsgi.input"], length, _MAX_ORDER_BYTES, lambda _: None)
    try:
        return msgspec.json.decode(sent, type=Order)
    except ValueError as error:
        raise Rejected(422, "order", f"not an order: {error}; the body is a JSON object, and its {_MEMBERS}") from error


def _document(report: Report, order: Order) -> dict[str, Any]:
    done = report.done
    return {
        "letters": done.count, "events": done.events.total(),
        "by_reason": {reason: {"letters": count, "events": done.events[reason]}
                      for reason, count in done.letters.items()},
        "left": dict(report.left.letters), "dry_run": order.dry_run,
    }
