"""Read untrusted archives with a limit for each read."""

from __future__ import annotations

import io
import os
from pathlib import Path


class BoundedFile(io.FileIO):
    """Limit the size of each read of a file, whatever size the central directory of an archive claims."""

    def __init__(self, path: Path, most: int, error: Exception) -> None:
        super().__init__(path, "rb")
        self._most = most
        self._error = error

    def read(self, size: int | None = -1, /) -> bytes:
        """Read like a file. Raises `error` if more than `most` bytes are requested."""
        wanted = size if size is not None and size >= 0 else os.fstat(self.fileno()).st_size - self.tell()
        if wanted > self._most:
            raise self._error
        return super().read(size) or b""
