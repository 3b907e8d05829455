"""Count the files that a mapping leaves out, and explain how to include them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from msgspec import Struct, field

from docferry.files.safe_open import LONGEST_PATH
from docferry.files.scan import Listing
from docferry.model import escaped, joined
from docferry.settings import Upload
from docferry.settings.patterns import EVERYTHING


class LeftOut(Struct):
    """Count the files of one walk that are not documents, by reason; built-in excludes do not count."""

    count: Counter[str] = field(default_factory=Counter)  # exclude, include, case, link, too_long
    example: dict[str, bytes] = field(default_factory=dict)
    documents: int = 0

    def add_listing(self, listing: Listing) -> None:
        """Count the entries of a folder that are not regular files."""
        for reason, count in (("link", listing.links), ("too_long", listing.too_long)):
            if count:
                self.count[reason] += count
                self.example.setdefault(reason, listing.folder)

    def add_unwanted(self, upload: Upload, paths: Iterable[bytes]) -> None:
        """Count files that the mapping's patterns exclude."""
        for path in paths:
            reason = upload.left_out(path)
            if reason is not None and reason != "builtin":
                self.count[reason] += 1
                self.example.setdefault(reason, path)

    def sentences(self, upload: Upload) -> list[str]:
        """Return one sentence for each reason that a person can change: count, example, pattern and fix."""
        return [*self._patterns(upload), *self._names()]

    def _patterns(self, upload: Upload) -> Iterator[str]:
        written = ", ".join(f'"{pattern}"' for pattern in upload.include)
        if count := self.count["include"]:
            nothing = "" if self.documents else ", and no document matches"
            fix = _fix(upload.include) or "add a pattern if they are documents"
            shown = escaped(self.example["include"])
            yield f"{count:,} files match no pattern of include = [{written}]{nothing}, such as {shown}: {fix}"
        if count := self.count["case"]:
            shown = escaped(self.example["case"])
            suffix = escaped(self.example["case"].rpartition(b".")[2])
            yield (
                f"{count:,} files match include = [{written}] only in other letter case, such as {shown}: "
                f'add "*.{suffix}"'
            )

    def _names(self) -> Iterator[str]:
        if count := self.count["link"]:
            where = escaped(self.example["link"] or b".")
            yield (
                f"{count:,} links are not followed, such as those in {where}: "
                "put the documents there, or map the folder that they lead to"
            )
        if count := self.count["too_long"]:
            where = escaped(self.example["too_long"][:80])
            yield f"{count:,} paths exceed {LONGEST_PATH:,} bytes ({where}…): move them up, or map a subfolder"


def unmatched(upload: Upload, paths: Iterable[bytes]) -> list[str]:
    """Return one sentence with a fix for each `include` pattern that matches none of these paths."""
    if tuple(upload.include) == EVERYTHING:
        return []
    left = dict.fromkeys(range(len(upload.include)))
    for path in paths:
        if not left:
            break
        for number, matches in enumerate(upload.include_matches(path)):
            if matches:
                left.pop(number, None)
    return [
        f'the pattern "{upload.include[number]}" of include matches no file: '
        + (_fix([upload.include[number]]) or "correct or remove it")
        for number in left
    ]


def unwanted(upload: Upload, listing: Listing) -> Iterator[bytes]:
    """Yield the paths of a listing that are not documents."""
    for name, *_ in listing.files:
        path = joined(listing.folder, name)
        if not upload.wanted(path):
            yield path


def _fix(include: Iterable[str]) -> str | None:
    """Return the fix of a common mistake in patterns, None if there is none."""
    patterns = list(include)
    if not patterns:
        return 'include is empty; remove it, or write include = ["*"]'
    for pattern in patterns:
        if "," in pattern:
            parted = ", ".join(f'"{part.strip()}"' for part in pattern.split(","))
            return f"write one pattern in each string: include = [{parted}]"
        if pattern.startswith("./"):
            return f'patterns are relative to the folder: write "{pattern[1:]}" for its top, or "{pattern[2:]}"'
        if pattern.startswith("/") and pattern.count("/") > 1:
            return f'patterns are relative to the folder, so "{pattern}" is not an absolute path'
        if "\\" in pattern:
            return 'folders are separated by "/" in patterns'
    return None
