"""How many batches a load may have: all that are at hand, until one fails for what may be some of its rows.

Then half of that, and so on down to one, and twice as many after each that is loaded. What fails alone is told from a
server that takes nothing by what the server takes meanwhile.
"""


class LoadSize:
    """As one consumer has it.

    Args:
        most: Batches in a load of full size.

    Attributes:
        limit: Batches that the next load may have.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken_bytes = 0
        self.limit = most

    def note_failed(self, count: int) -> None:
        """Notes that a load of `count` batches failed for what may be some of its rows."""
        self.limit = max(1, count // 2)

    def note_loaded(self, count: int, size_bytes: int) -> None:
        """Notes that a load was committed."""
        if count >= self.limit:
            self.limit = min(self._most, 2 * self.limit)
        self._taken_bytes = max(self._taken_bytes, size_bytes)

    def has_taken(self, size_bytes: int) -> bool:
        """Tells whether a load of at least so many bytes was committed since this was last asked."""
        taken_bytes, self._taken_bytes = self._taken_bytes, 0
        return taken_bytes >= size_bytes
