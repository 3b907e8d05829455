"""The pydantic configuration of each section of the file."""

from __future__ import annotations

from typing import Final

from pydantic import ConfigDict

#: A section is validated as a part of `Settings`: a validator of its own for each would be 18 ms of every start.
SECTION: Final = ConfigDict(frozen=True, extra="forbid", defer_build=True)
