"""Whether a file has changed since it was last asked about: by stat, which sees a rename and a moved link, too.

Once a second costs nothing, works on every file system, and follows the links by which Kubernetes swaps a ConfigMap,
where inotify watches the wrong inode.
"""

from __future__ import annotations

import os


class FileWatch:
    """Remembers what the file looked like."""

    __slots__ = ("_path", "_seen")

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen = self._look()

    def __repr__(self) -> str:
        return f"FileWatch({self._path!r})"

    def has_changed(self) -> bool:
        """True once for each change; a file that is gone is no change, it is being replaced."""
        found = self._look()
        if found is None or found == self._seen:
            return False
        self._seen = found
        return True

    def _look(self) -> tuple[int, int, int, int] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
