"""The real ingest application on a disk that hangs while the FIFO that `STUCK` names is there, for gunicorn:
`tests.stuck:get_app()`.
"""

import os


def get_app():
    """Imports after gunicorn has patched, as the real one does."""
    from app import edge
    from wal.file import Files

    sync = Files.sync

    def hang_and_sync(self, fd):
        if os.path.exists(os.environ["STUCK"]):
            os.close(os.open(os.environ["STUCK"], os.O_RDONLY))  # until somebody opens it for writing
        sync(self, fd)

    Files.sync = hang_and_sync
    return edge.get_app()
