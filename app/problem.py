"""Answers to what went wrong, as RFC 9457 problem details."""

import logging
from http import HTTPStatus
from typing import Any

import falcon
import msgspec
from falcon import Request, Response

from app import log
from app.errors import NotDurable, Rejected

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


def install(app: "falcon.App[Request, Response]") -> None:
    """Makes the app answer every error in this form."""
    app.add_error_handler(Exception, _on_exception)
    app.add_error_handler(falcon.HTTPError, _on_http_error)
    app.add_error_handler(Rejected, _on_rejected)
    app.add_error_handler(NotDurable, _on_not_durable)


def document(status: int, cause: str, detail: str, **members: Any) -> bytes:
    """Returns a problem as JSON; without a cause, its title is the status's own."""
    title = cause.replace("_", " ") if cause else HTTPStatus(status).phrase
    kind = f"urn:spillway:problem:{cause}" if cause else "about:blank"
    return msgspec.json.encode({"type": kind, "title": title, "status": status, "detail": detail, **members})


def _write(resp: Response, status: int, cause: str, detail: str, **members: Any) -> None:
    resp.status = status
    resp.content_type = MEDIA_TYPE
    resp.data = document(status, cause, detail, **members)


def _on_rejected(req: Request, resp: Response, error: Rejected, params: dict[str, Any]) -> None:
    faults = [{"index": fault.index, "field": fault.field, "reason": fault.reason} for fault in error.faults]
    _write(resp, error.status, error.cause, error.detail, **({"errors": faults} if faults else {}))


def _on_not_durable(req: Request, resp: Response, error: NotDurable, params: dict[str, Any]) -> None:
    _write(resp, 503, f"not_durable_{error.cause}", error.detail)
    resp.set_header("Retry-After", "1")


def _on_http_error(req: Request, resp: Response, error: falcon.HTTPError, params: dict[str, Any]) -> None:
    for name, value in dict(error.headers or {}).items():
        resp.set_header(name, value)
    allowed = resp.get_header("Allow")
    detail = f"{req.method} is not allowed on {req.path}; {allowed} are" if allowed else f"{req.method} {req.path}"
    _write(resp, error.status_code, "", error.description or detail)


def _on_exception(req: Request, resp: Response, error: Exception, params: dict[str, Any]) -> None:
    # Nothing was acknowledged: a client that tries again loses nothing, while it would give up after a 500.
    logger.exception(log.line("request_failed", method=req.method, path=req.path), exc_info=error)
    _write(resp, 503, "internal", "a fault of this service; nothing was acknowledged, send it again")
    resp.set_header("Retry-After", "1")
