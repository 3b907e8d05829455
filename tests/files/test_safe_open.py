"""Test that no link below a root is followed, and that no other user can replace the root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docferry.errors import FolderError
from docferry.files.safe_open import FILE, OpenRoot, Root, open_beneath, replaceable
from docferry.files.scan import walk
from files.conftest import NOBODY

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")


def content(root: Root, path: bytes = b"a.pdf") -> bytes:
    with OpenRoot(root) as opened, opened.opened(path, FILE) as descriptor:
        return os.read(descriptor, 100)


@pytest.fixture
def customers(root: Path) -> Path:
    """Two customers: `hers`, whose owner can write in the parent folder, and `other`."""
    for name in ("above/hers", "other"):
        (root / name).mkdir(parents=True)
        (root / name / "a.pdf").write_bytes(name.encode())
    if os.geteuid() == 0:
        os.chown(root / "above", NOBODY, NOBODY)
    return root


@needs_root
def test_a_mapped_folder_that_its_owner_replaced_by_a_link_is_not_read(customers: Path) -> None:
    hers = Root(customers / "above" / "hers")
    assert content(hers) == b"above/hers"
    shutil.rmtree(hers.path)
    hers.path.symlink_to(customers / "other")
    with pytest.raises(FolderError, match="which another user can replace: name the real folder"):
        content(hers)
    with pytest.raises(FolderError, match="follow_root_links"):
        list(walk(hers))
    assert content(Root(hers.path, follow_links=True)) == b"other"


@needs_root
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_a_link_is_trusted_only_where_nobody_else_can_put_one(customers: Path, mode: int) -> None:
    """In a folder that a group may write, and in /tmp, other users may own the link."""
    above = customers / "above"
    os.chown(above, 0, NOBODY)
    above.chmod(mode)
    link = above / "link"
    link.symlink_to(customers / "other")
    os.lchown(link, NOBODY, NOBODY)
    with pytest.raises(FolderError, match="another user can replace"):
        content(Root(link))
    if mode == 0o1777:
        os.lchown(link, 0, 0)
        assert content(Root(link)) == b"other"
    above.chmod(0o755)
    os.lchown(link, NOBODY, NOBODY)
    assert content(Root(link)) == b"other"


def test_links_of_an_administrator_are_followed(root: Path) -> None:
    (root / "real" / "deep").mkdir(parents=True)
    (root / "real" / "deep" / "a.pdf").write_bytes(b"x")
    (root / "one").symlink_to("real")
    (root / "two").symlink_to(root / "one" / ".." / "one" / "deep")
    assert content(Root(root / "two")) == b"x"
    (root / "loop").symlink_to("loop")
    with pytest.raises(FolderError, match="too many levels"):
        content(Root(root / "loop"))


@needs_root
def test_check_can_tell_what_is_replaceable(customers: Path) -> None:
    assert replaceable(Root(customers / "other")) is None
    assert replaceable(Root(customers / "above" / "hers")) == os.fsencode(customers / "above" / "hers")


@pytest.mark.parametrize("path", [b"../other/a.pdf", b"/etc/passwd", b"", b".", b"x//y", b"a\0b", b"d/" * 2100 + b"x"])
def test_paths_that_lead_elsewhere_are_refused(root: Path, path: bytes) -> None:
    with OpenRoot(Root(root)) as opened, pytest.raises(OSError, match="not a path beneath"):
        open_beneath(opened.descriptor, path, FILE)


NO_OPENAT2 = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
long syscall(long number, ...) {
    static long (*real)(long, ...);
    if (!real) real = dlsym(RTLD_NEXT, "syscall");
    if (number == 437) { errno = ENOSYS; return -1; }
    va_list given; va_start(given, number);
    long a = va_arg(given, long), b = va_arg(given, long), c = va_arg(given, long), d = va_arg(given, long);
    va_end(given);
    return real(number, a, b, c, d);
}
"""


def test_a_kernel_without_openat2(tmp_path: Path) -> None:
    """The same tests pass with component-by-component resolution."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler, to take a call from the kernel")
    (tmp_path / "old.c").write_text(NO_OPENAT2)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "old.so", tmp_path / "old.c", "-ldl"], check=True)
    here = Path(__file__).parent
    tests = [
        here / "test_scan.py",
        here / "test_sent_files.py",
        f"{__file__}::test_links_of_an_administrator_are_followed",
    ]
    # the probe reads a private function, to prove that the library hides the call from this program
    probe = (
        "from pathlib import Path\nfrom docferry.files import safe_open\n"
        "assert not safe_open._has_openat2(), 'openat2 is still there'\n"
    )
    extra = {**os.environ, "LD_PRELOAD": str(tmp_path / "old.so"), "PYTHONPATH": str(here.parent)}
    subprocess.run([sys.executable, "-c", probe], env=extra, check=True)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not kernel", *map(str, tests)]
    done = subprocess.run(words, env=extra, capture_output=True, text=True, check=False, cwd=here.parent.parent)
    assert done.returncode == 0, done.stdout[-3000:]
