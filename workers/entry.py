"""Entry: a batch in the stream, as the consumer that it was given to has it."""

from typing import NamedTuple

from app.batch import Batch

# So many consumers ended without a word while they had it: from there on an entry is read, and so loaded, alone.
SUSPECT_AT = 3
# A delivery for which PostgreSQL was shown to take others counts as so many.
ALONE = 1000
# A load of it alone that PostgreSQL refused while it took others counts as so many.
REFUSED = 1_000_000

# Names in the group that no consumer has: what is under them waits, and holds nobody.
SET_ASIDE = "set-aside"  # refused alone
FORMAT_PREFIX = "format-"  # and the number: of a format that the consumer that read it does not know


class Entry(NamedTuple):
    """A batch in the stream.

    Attributes:
        entry_id: Of the entry.
        batch: What it holds.
        deliveries: How often it was given to a consumer that has not said since that it lives; 1 for most.
    """

    entry_id: bytes
    batch: Batch
    deliveries: int = 1

    @property
    def is_suspect(self) -> bool:
        """Whether consumers seem to die of it."""
        return self.deliveries >= SUSPECT_AT

    @property
    def deaths_alone(self) -> int:
        """How many consumers ended without a word while they loaded it alone."""
        return self.deliveries % REFUSED // ALONE

    @property
    def refusals(self) -> int:
        """How often PostgreSQL refused it alone while it took others."""
        return self.deliveries // REFUSED
