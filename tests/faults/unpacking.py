"""Extract archives like a download, with a limit for every file, and count the outcomes.

`unpacking.py FOLDER` extracts the corpus, `unpacking.py FOLDER 0 2000` mutations by seed. Prints one JSON object.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # started as a program, this folder alone is known

import zip_corpus
import zips
from docferry.errors import ArchiveError, FolderError
from docferry.files import publish, unzip
from docferry.files.placement import Content

CAPS = unzip.Caps(count=200, size=2 * 1024 * 1024, member=1024 * 1024)
#: Makes the kernel forget the peak of memory: packing an archive may take more than unpacking it.
_FORGET = Path("/proc/self/clear_refs")
#: Documents are small where thousands are mutated.
SMALL = 5000


def publish_archive(raw: bytes, app_env: Path, caps: unzip.Caps = CAPS) -> tuple[list[Path], int]:
    """Publish an archive as a download does: return the files in the inbox, and the number of refused members."""
    spool, inbox = app_env / "spool", app_env / "inbox"
    spool.mkdir(exist_ok=True)
    (spool / "day.zip").write_bytes(raw)
    published = []
    extracted = unzip.unzip(spool / "day.zip", spool / "members", caps)
    for member in extracted.members:
        relative = publish.render_layout(
            "{date}/{source}/{name}", date="2026-01-31", source=member.folder, name=member.name, company_id="c"
        )
        content = Content(member.sha256, member.size)
        target = publish.choose(inbox, relative, content)
        published.append(publish.put(member.spool, target, inbox, content))
    (spool / "members").rmdir()
    return published, len(extracted.refused)


def files(folder: Path) -> list[Path]:
    """Return everything below a folder except folders; links are not followed."""
    return [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]


def _cases(words: list[str]) -> Iterator[zip_corpus.Case]:
    if not words:
        yield from zip_corpus.corpus()
        return
    pool = [raw for _, raw, _ in zip_corpus.corpus() if 30 < len(raw) < SMALL]
    for seed in range(int(words[0]), int(words[1])):
        yield f"seed {seed}", zips.mutated(seed, pool), "either"


def _fate(raw: bytes, app_env: Path) -> tuple[str, list[str]]:
    """Return the outcome of an archive, and each violated rule."""
    try:
        published, refused = publish_archive(raw, app_env)
    except (ArchiveError, FolderError):
        left = [path for path in files(app_env) if path.name != "day.zip"]
        return "refused", [f"left behind: {left}"] if left else []
    wrong = [f"outside: {path}" for path in published if not path.resolve().is_relative_to(app_env / "inbox")]
    size = sum(path.stat().st_size for path in published)
    if size > CAPS.size or len(published) > CAPS.count:
        wrong.append(f"beyond the caps: {size} bytes, {len(published)} files")
    wrong += [f"not plain: {path}" for path in published if path.is_symlink() or path.stat().st_mode & 0o7111]
    return "refused" if refused else "taken", wrong


def peak_memory() -> int:
    """Return the peak memory in bytes, since it was reset."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def main(words: list[str]) -> None:
    """Extract all archives in a new folder, and print the counts."""
    app_env = Path(words[0])
    app_env.mkdir()
    fates = {"taken": 0, "refused": 0}
    wrong: list[str] = []
    said, memory = time.monotonic(), 0
    for what, raw, verdict in _cases(words[1:]):
        # Not even for a moment a member that is larger than it may be; the archive itself may be.
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(CAPS.member, len(raw)), resource.RLIM_INFINITY))
        _FORGET.write_text("5")
        kill_at, found = _fate(raw, app_env)
        memory = max(memory, peak_memory())
        fates[kill_at] += 1
        wrong += [f"{what}: {each}" for each in found]
        if verdict not in ("either", kill_at):
            wrong.append(f"{what}: {kill_at}")
        for path in files(app_env):
            path.unlink()
        if time.monotonic() - said > 10:
            said = time.monotonic()
            print(f"  {sum(fates.values()):,} archives: {fates}", file=sys.stderr, flush=True)
    print(json.dumps({**fates, "wrong": wrong, "memory": memory}))


if __name__ == "__main__":
    main(sys.argv[1:])
