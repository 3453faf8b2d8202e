"""The least that a WSGI application can do: how fast stock gunicorn answers with it is a limit of `spillway bench`.

Not in `ops.bench`: a gunicorn worker would import all of that with it, patched by gevent.
"""

from collections.abc import Callable, Iterable

_HEADERS = [("Content-Length", "0")]


def app(environ: dict[str, object], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Answers 200 without a body."""
    start_response("200 OK", _HEADERS)
    return ()
