"""The real ingest application with a crash point, for gunicorn: `tests.crash.edge_victim:get_app()`."""

from tests.crash import point


def get_app():
    """Imports after gunicorn has patched, as the real one does."""
    from app import edge
    from app.appender import Appender
    from app.spill import Spill
    from wal.writer import Writer

    sent = Appender._sent

    def arm_and_send(self, batches):
        # Here, and not where it is opened: the connection that probes is none of the hand-over's.
        if batches and "send_packed_command" not in vars(self._connection):
            point.arm(self._connection, "send_packed_command", "send")
        return sent(self, batches)

    Appender._sent = arm_and_send
    point.arm(Appender, "_reply", "reply")
    point.arm(Appender, "append", "append")
    point.arm(Spill, "append", "spill")
    point.arm(Writer, "write", "write")
    return edge.get_app()
