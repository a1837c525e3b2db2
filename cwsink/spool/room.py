"""`Room`: how full a spool is, and its disk."""

from __future__ import annotations

from typing import Final, NamedTuple

from cwsink.spool import capacity, disk, open_directory
from cwsink.spool.budget import used_bytes
from cwsink.spool.directory import SpoolDirectory

# From this fill on records may soon be lost.
NEARLY_FULL: Final = 0.8
# A spool that is emptier than this by now was full when it lost records.
_STILL_FULL: Final = 0.5
# An eviction frees an inode or two, so that there may be some while the lack of them costs records.
_FEW_FILES: Final = 8
# If no file can be made on a disk with so much room, it is not the room that lacks.
_PLENTY_BYTES: Final = 1024 * 1024


class Room(NamedTuple):
    """How full a spool is, in bytes.

    Attributes:
        used: what its records take.
        capacity: what they may take.
        free: what the disk has beside that; None if it does not say.
        segment: what they take at a time.
        files: how many files more the disk takes; None if it does not count them.
        others: what other files take of the disk.
    """

    used: int
    capacity: int
    free: int | None
    segment: int = 0
    files: int | None = None
    others: int = 0

    @property
    def lacks_files(self) -> bool:
        """Tell whether no file can be made on the disk although it has room: its inodes are used up."""
        return self.files is not None and self.files < _FEW_FILES and (self.free is None or self.free >= _PLENTY_BYTES)

    @property
    def is_disk_small(self) -> bool:
        """Tell whether the disk is full before the spool has what it may have."""
        return self.free is not None and self.used + self.free < self.capacity

    @property
    def is_of_others(self) -> bool:
        """Tell whether other files take more than half of the disk, and leave the spool too little."""
        return self.is_disk_small and self.others > self.used + (self.free or 0)

    @property
    def is_full(self) -> bool:
        """Tell whether what may have been full is full now. It is not if there is room again for many records."""
        if self.lacks_files or self.fill >= _STILL_FULL:
            return True
        return self.is_disk_small and (self.free or 0) < _PLENTY_BYTES

    @property
    def fill(self) -> float:
        """The share of it that is used."""
        most = self.used + (self.free or 0) if self.is_disk_small else self.capacity
        return self.used / max(most, 1)

    @property
    def is_nearly_full(self) -> bool:
        """Tell whether records may soon be lost: it is 80 % full, or has room for one segment at most."""
        return self.fill >= NEARLY_FULL or self.used + 1.5 * self.segment > self.capacity


def measure(directory: SpoolDirectory) -> Room:
    """Return how full a spool is. Raises OSError."""
    held = capacity.read(directory)
    with open_directory.at(directory.ring) as ring:
        free, free_files, total = disk.free_bytes(ring.fd), disk.free_files(ring.fd), disk.total_bytes(ring.fd)
    most, used = held.spool_max_bytes if held else directory.format.spool_max_bytes, used_bytes(directory.ring)
    others = total - used - (free or 0)
    return Room(used, most, free, held.segment_bytes if held else 0, free_files, others)
