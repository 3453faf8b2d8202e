"""Fold: what ended processes have counted, in one file of each kind instead of theirs, of which there is no end.

The files of one number replace those before, and the ended ones' own, in one step: the manifest names both. Whoever is
killed before it has changed nothing, and after it leaves files that count no more.
"""

import logging
import os
import struct
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app import log, metric_file
from app.metric_file import Manifest

logger = logging.getLogger(__name__)

_SUMMED = {"counter", "histogram", "summary", "gauge_sum"}
_CHOSEN = {"gauge_max": max, "gauge_min": min}
_LATEST = "gauge_mostrecent"
_KINDS = {*_SUMMED, *_CHOSEN, _LATEST}
_FOLDED = "folded-"
_UNREADABLE = (OSError, RuntimeError, ValueError, struct.error)  # cut short, or gone meanwhile
_OVERHEAD_BYTES = 64  # of a value, beside its key

_Values = dict[str, tuple[float, float]]


class ProcessMetrics(Collector):
    """What all processes of this host have counted, those that have ended included.

    Args:
        directory: Their files; it need not be there.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._is_silent = False

    def collect(self) -> Iterable[Metric]:
        """Returns what there is. Folds first; a scrape in another process never sees half of that."""
        try:
            with metric_file.locked(self._directory):
                _fold(self._directory)
                files = [str(path) for path in _counting(self._directory) if _values(path) is not None]
                found = list(MultiProcessCollector.merge(files))
            self._is_silent = False
            return found
        except OSError as error:  # Somebody has removed them; processes that start make them anew.
            if not self._is_silent:
                logger.warning(log.line("metrics_not_read", error=error))
            self._is_silent = True
            return []


def _counting(directory: Path) -> list[Path]:
    found = metric_file.manifest(directory)
    return [path for path in directory.glob("*.db") if path.name not in found.names
            and (_owner(path).isdecimal() or _owner(path) == f"{_FOLDED}{found.number}")]


def _owner(path: Path) -> str:
    return path.stem.rpartition("_")[2]


def _kind(path: Path) -> str:
    return path.stem.rpartition("_")[0]


def _fold(directory: Path) -> None:
    """Folds what has ended since; under the lock."""
    before = metric_file.settle(directory)
    counting = _counting(directory)
    ended = {pid for pid in set(map(_owner, counting)) if pid.isdecimal()
             and not metric_file.is_alive(directory, int(pid))}
    gone = [path for path in counting if _owner(path) in ended and (_kind(path) in _KINDS or "_live" in _kind(path))]
    if not gone:
        return
    folded = [path for path in counting if not _owner(path).isdecimal()]
    sources = defaultdict(list)
    for path in (*gone, *folded):
        if _kind(path) in _KINDS:  # A live gauge ends with its process.
            sources[_kind(path)].append(path)
    number = before.number + 1
    try:
        for kind, paths in sources.items():
            _write(directory / f"{kind}_{_FOLDED}{number}.db", _merged(kind, paths))
    except OSError as error:
        logger.warning(log.line("metrics_not_folded", error=error))  # They count as they are.
        return
    metric_file.publish(directory, Manifest(number, tuple(path.name for path in (*gone, *folded))))
    metric_file.settle(directory)


def _merged(kind: str, paths: Iterable[Path]) -> _Values:
    merged: _Values = {}
    for path in paths:
        for key, (value, at) in (_values(path) or {}).items():
            if key in merged:
                known, known_at = merged[key]
                if kind in _CHOSEN:
                    value = _CHOSEN[kind](value, known)
                elif kind == _LATEST:
                    value, at = max((at, value), (known_at, known))[::-1]
                else:
                    value += known
            merged[key] = value, at
    return merged


def _values(path: Path) -> _Values | None:
    """Returns what stands in a file; None where it cannot be read."""
    try:
        found = MmapedDict.read_all_values_from_file(str(path))
        return {key: (value, at) for key, value, at, _ in found}
    except _UNREADABLE:
        return None


def _write(path: Path, values: _Values) -> None:
    """Writes a file as prometheus_client does, with all its room: on a full disk it would be a SIGBUS."""
    path.unlink(missing_ok=True)
    size = sum(len(key.encode()) + _OVERHEAD_BYTES for key in values)
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1 << 16, size))
    written = MmapedDict(str(path))
    for key, (value, at) in values.items():
        written.write_value(key, value, at)
    written.close()
