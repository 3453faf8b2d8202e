"""The turn to read a log: one process's at a time, also where several hosts in containers share its directory.

Two readers would do no harm, but all the work twice. The lock is the directory's own: it needs no room on a full disk,
and ends with the process, however that ends.
"""

from pathlib import Path

from wal.file import FILES, Files, failure


class Turn:
    """The right to read a log, of one process.

    Args:
        directory: The log; it must exist.
        files: The operating system.
    """

    def __init__(self, directory: Path, files: Files = FILES) -> None:
        self._directory = directory
        self._files = files
        self._fd: int | None = None

    def take(self) -> bool:
        """Returns whether it is this process's turn; once it is, it stays so until the process ends.

        Raises:
            WalFailed: The file system cannot lock a directory, or fails.
        """
        try:
            if self._fd is None:
                self._fd = self._files.hold(self._directory)
        except OSError as error:
            raise failure(error) from error
        return self._fd is not None
