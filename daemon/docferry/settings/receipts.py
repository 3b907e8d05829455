"""Define `[receipts]` and `[verify]`: the log of receipts, the anchors of its heads, and checks at the remotes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, WithJsonSchema

from docferry.settings.alerts import web_address
from docferry.settings.section import SECTION
from docferry.settings.values import PlainPath, SomeSeconds

#: Anchors without a path or URL; the other kinds are `file:PATH` and `tsa:URL`.
_PLAIN: Final = ("log", "email", "webhook")


def _anchor(written: str) -> str:
    kind, colon, place = written.partition(":")
    if kind in _PLAIN and not colon:
        return written
    if kind == "file" and Path(place).is_absolute() and "\0" not in place:
        return written
    if kind == "tsa":
        web_address(place)
        return written
    raise ValueError('is no anchor; write "log", "email", "webhook", "file:/absolute/path" or "tsa:https://…"')


def _listed(written: object) -> object:
    return (written,) if isinstance(written, str) else written


Anchors = Annotated[
    tuple[Annotated[str, AfterValidator(_anchor)], ...],
    BeforeValidator(_listed),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}}),
]


class Receipts(BaseModel):
    """Hold `[receipts]`: the tamper-evident log of sent documents."""

    model_config = SECTION

    key_file: PlainPath | None = Field(
        default=None, description="an Ed25519 private key, PEM; heads are signed with it"
    )
    retain: SomeSeconds | None = Field(default=None, description="the age at which texts of receipts are erased")
    anchor: Anchors = Field(
        default=("log",), description="where heads are copied: log, email, webhook, file:PATH, tsa:URL"
    )

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files to which heads are appended."""
        return tuple(Path(each.removeprefix("file:")) for each in self.anchor if each.startswith("file:"))


class Verify(BaseModel):
    """Hold `[verify]`: whether and how often the daemon checks that the remotes still have all sent documents."""

    model_config = SECTION

    every: SomeSeconds | None = Field(default=None, description="unset: only `docferry verify` asks")
