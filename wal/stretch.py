"""A stretch of a segment that is still to be read: the tail, or a gap where the disk could not read.

It keeps the place, and counts what is damaged before it; nothing of it moves but with the frames that it returns.
"""

from wal import frame
from wal.frame import Frame
from wal.view import View


class Damage:
    """What a segment has lost so far.

    Attributes:
        torn_count: Invalid frames that no sync is known to have covered.
        corrupt_count: Records below a later frame's watermark.
    """

    def __init__(self) -> None:
        self.torn_count = 0
        self.corrupt_count = 0
        self._durable_upto = 0
        # Invalid parts that no watermark has covered yet: where they begin and how many frames they held.
        self._suspects: list[tuple[int, int]] = []

    def suspect(self, start: int, count: int) -> None:
        """Notes an invalid part."""
        self._suspects.append((start, count))

    def settle(self, durable_upto: int = 0) -> None:
        """Counts as corrupt what a watermark covers."""
        self._durable_upto = max(self._durable_upto, durable_upto)
        if self._suspects:
            self.corrupt_count += sum(count for start, count in self._suspects if start < self._durable_upto)
            self._suspects = [suspect for suspect in self._suspects if suspect[0] >= self._durable_upto]

    def end(self) -> None:
        """Counts as torn what no watermark has covered."""
        self.settle()
        self.torn_count += sum(count for _, count in self._suspects)
        self._suspects = []


class Stretch:
    """A part of a segment.

    Args:
        view: Of the segment.
        damage: Where what is invalid in it is counted.
        gaps: Where to put what could not be read in it.
        offset: Where it begins.
        stop: Where it ends.
        sequence: Of the last frame before it.
        next_sequence: Of the frame behind it; 0: there is none.

    Attributes:
        is_unreadable: The disk could not read where it begins.
        is_done: Nothing is left of it.
    """

    def __init__(
        self, view: View, damage: Damage, gaps: "list[Stretch]", offset: int, stop: int, sequence: int = 0,
        next_sequence: int = 0,
    ) -> None:
        self.is_unreadable = self.is_done = False
        self._view = view
        self._damage = damage
        self._gaps = gaps
        self._offset = offset
        self._stop = stop
        self._sequence = sequence
        self._next_sequence = next_sequence

    def read(self, max_bytes: int, is_final: bool) -> list[tuple[Frame, bytes]]:
        """Returns the next frames and their payloads: as many as fit, and at least one if there is any.

        Args:
            max_bytes: Of the payloads together.
            is_final: Whether nobody writes to it any more: what is invalid in it stays so.

        Raises:
            OSError: The rest of it cannot be read now.
        """
        frames: list[tuple[Frame, bytes]] = []
        size = 0
        while not self.is_done:
            try:
                found = self._next(is_final)
            except OSError:
                if frames:  # else they would be lost with the error, which the next call meets again
                    break
                self.is_unreadable = True
                found = self._behind(is_final)
                if not found:
                    raise
            if not found:
                break
            size += found[0].length
            if frames and size > max_bytes:
                break
            self._pass(found[0])
            if found[0].flags & frame.IS_SEAL:
                self.is_done = True
            else:
                frames.append(found)
        return frames

    def give_up(self) -> None:
        """Counts as corrupt what is left of it."""
        if not self.is_done:
            self._damage.corrupt_count += self._missing_before(self._next_sequence)
        self.is_done = True

    def _next(self, is_final: bool) -> tuple[Frame, bytes] | None:
        found = self._view.frame_at(self._offset) if self._offset < self._stop else None
        if is_final and not found:
            found = next(self._view.frames(self._offset, self._stop), None)
            if not found:
                self._finish()
        return found

    def _behind(self, is_final: bool) -> tuple[Frame, bytes] | None:
        """Finds the first frame behind what cannot be read, and leaves a gap before it.

        In a live segment it has to begin a group: all before it is finished then.
        """
        found = next((one for one in self._view.frames(self._offset, self._stop, is_lenient=True)
                      if is_final or one[0].durable_upto >= one[0].offset), None)
        if found and found[0].offset > self._offset:
            head = found[0]
            gap = Stretch(
                self._view, self._damage, self._gaps, self._offset, head.offset, self._sequence, head.sequence
            )
            gap.is_unreadable = True
            self._gaps.append(gap)
            self._offset = head.offset
        return found

    def _pass(self, head: Frame) -> None:
        """Moves behind the frame. Its watermark tells which of the invalid parts were acknowledged."""
        if head.offset != self._offset:
            self._damage.suspect(self._offset, self._missing_before(head.sequence))
        self._damage.settle(head.durable_upto)
        self._offset, self._sequence, self.is_unreadable = head.end, head.sequence, False

    def _finish(self) -> None:
        """Ends it where no frame counts in the rest."""
        if self._next_sequence:
            missing = self._missing_before(self._next_sequence) if self._offset < self._stop else 0
        else:
            missing = int(self._view.has_bytes(self._offset, self._stop))
        if missing:
            self._damage.suspect(self._offset, missing)
        self.is_done = True

    def _missing_before(self, sequence: int) -> int:
        return max(1, sequence - self._sequence - 1)
