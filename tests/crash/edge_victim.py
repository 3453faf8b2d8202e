"""The real ingest application with a crash point, for gunicorn: `tests.crash.edge_victim:get_app()`."""

from tests.crash import point


def get_app():
    """Imports after gunicorn has patched, as the real one does."""
    from app import edge
    from app.appender import Appender

    def send(connection):
        point.arm(connection, "send_packed_command", "send")

    opened = Appender._open

    def open_and_arm(self):
        was_open = self._is_open
        opened(self)
        if not was_open:
            send(self._connection)

    Appender._open = open_and_arm
    point.arm(Appender, "_reply", "reply")
    point.arm(Appender, "append", "append")
    return edge.get_app()
