"""Define the pydantic configuration of each section of the file."""

from __future__ import annotations

from typing import Final

from pydantic import ConfigDict

#: A section is validated as a part of `Settings`. A separate validator for each would add 18 ms to every start.
SECTION: Final = ConfigDict(frozen=True, extra="forbid", defer_build=True)
