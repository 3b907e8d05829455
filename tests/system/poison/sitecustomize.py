"""Let system calls raise any exception for paths that contain a word, in the real program.

`POISON_ERROR` is a builtin exception, optionally with a colon and an errno. `POISON_CALLS` are functions of `os`,
separated by commas. `POISON_WORD` is the word in the path, or in the path of the descriptor.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable
from typing import Any

_ERROR, _CALLS = os.environ.get("POISON_ERROR", ""), os.environ.get("POISON_CALLS", "")
_WORD = os.environ.get("POISON_WORD", "poison")
_readlink = os.readlink


def _error() -> Exception:
    kind, _, number = _ERROR.partition(":")
    made = getattr(builtins, kind)
    if number:
        found: Exception = made(int(number), os.strerror(int(number)))
    elif kind.startswith("Unicode"):
        found = made("utf-8", b"\xff" if kind == "UnicodeDecodeError" else "\udcff", 0, 1, "poisoned")
    else:
        found = made("poisoned")
    return found


def _path_of(place: object) -> str:
    if isinstance(place, int):
        try:
            return _readlink(f"/proc/self/fd/{place}")
        except OSError:
            return ""
    return os.fsdecode(place) if isinstance(place, str | bytes | os.PathLike) else ""


def _poisoned(real: Callable[..., Any]) -> Callable[..., Any]:
    def call(place: object = ".", *more: object, **named: object) -> object:
        if _WORD in _path_of(place):
            raise _error()
        return real(place, *more, **named)

    return call


for _name in filter(None, _CALLS.split(",")):
    setattr(os, _name, _poisoned(getattr(os, _name)))
