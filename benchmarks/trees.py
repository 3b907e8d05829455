"""Build the folders to send, once for a run, with different bytes in every file."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Tree:
    """Describe files of one size, spread evenly over folders."""

    root: Path
    files: int
    size: int

    @property
    def total(self) -> int:
        return self.files * self.size


def build(place: Path, name: str, files: int, size: int, folders: int) -> Tree:
    """Build the tree `name` below `place`, or reuse a complete one of an earlier run."""
    tree = Tree(place / name, files, size)
    finished = place / f"{name}.made"
    if finished.exists():
        return tree
    for number in range(folders):
        (tree.root / f"d{number:04}").mkdir(parents=True, exist_ok=True)
    filler = os.urandom(min(size, _BLOCK))
    for number in range(files):
        _write(tree.root / f"d{number % folders:04}" / f"f{number:07}.pdf", number, size, filler)
    time.sleep(0.6)  # longer than the `settle` of every measurement, so that none waits for it
    finished.touch()
    return tree


def _write(path: Path, number: int, size: int, filler: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, _BLOCK):
            block = filler[: min(_BLOCK, size - start)]
            mark = b"%08d%08d" % (number, start >> 20)
            file.write((mark + block[len(mark) :])[: len(block)])
