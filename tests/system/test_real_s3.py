"""Test docferry with an S3 server and URLs by other software."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from api_keys import StaticKey
from app_env import AppEnv, until
from docferry.clock import SystemClock
from docferry.errors import RemoteError
from docferry.remotes.http import HttpClient, HttpOptions
from docferry.remotes.wootiv.client import Wootiv, WootivOptions
from docferry.remotes.wootiv.signed_url import SignedUrlPolicy
from system.rclone_s3 import DamagingProxy, Front, RcloneServer, rclone

MIB = 1 << 20
#: Names that a URL, a header, a shell or a file system could spoil; sizes around one block.
DOCUMENTS = {
    "one.pdf": 1,
    "with spaces  (1) - copy.pdf": 300,
    "grüße 日本 ~ñ.png": 70_001,
    "nai\u0308ve, as macOS writes it.pdf": 4096,
    "50 % + 20% more?.csv": 65_536,
    "a%20b%2Fc%zz.pdf": 17,
    "what=this&that;#1,2:3@4!$'*.docx": 1234,
    'say "so" <now> {or} [never] ^|`.txt': 999,
    "back\\slash.pdf": 77,
    "deep/down/in the/folder.xlsx": 12_345,
    "exactly.pdf": MIB,
    "just above.pdf": MIB + 1,
    "several.zip": 5 * MIB + 12_345,
}


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def store(opened: ExitStack, tmp_path: Path) -> Callable[..., RcloneServer]:
    """`store("--etag-hash", "sha1")` starts rclone with these options, until the test ends."""
    program = rclone()
    if program is None or subprocess.run([program, "version"], check=False, capture_output=True).returncode:
        pytest.skip("rclone is not here, or does not run on this machine")

    def start(*options: str) -> RcloneServer:
        rclone_server = RcloneServer(tmp_path, *options)
        opened.callback(rclone_server.close)
        return rclone_server

    return start


@pytest.fixture
def rclone_server(store: Callable[..., RcloneServer]) -> RcloneServer:
    return store()


@pytest.fixture
def front(app_env: AppEnv, rclone_server: RcloneServer, opened: ExitStack) -> Front:
    """Wootiv in front of the rclone server."""
    return before(app_env, opened, rclone_server.sign)


@pytest.fixture
def scans(app_env: AppEnv) -> Path:
    return app_env.upload("scans", "wootiv")


def before(app_env: AppEnv, opened: ExitStack, sign: Callable[[str, str], str]) -> Front:
    """Configure a Wootiv in front of S3 that signs with this function."""
    made = Front(app_env.simulator.options.wootiv_key, sign)
    opened.callback(made.close)
    app_env.wootiv["base_url"] = f'"{made.url}"'
    return made


def damaged_path(app_env: AppEnv, opened: ExitStack, rclone_server: RcloneServer) -> tuple[DamagingProxy, Front]:
    """Provide a damaging proxy before the rclone server, and a Wootiv whose URLs lead to it."""
    line = DamagingProxy(rclone_server.url)
    opened.callback(line.close)
    return line, before(app_env, opened, lambda verb, name: rclone_server.sign(verb, name, through=line.url))


def filled(folder: Path) -> dict[str, bytes]:
    made = {}
    for number, (name, size) in enumerate(DOCUMENTS.items()):
        made[name] = (b"%d %s\n\x00\xff" % (number, name.encode()) * (size // 10 + 1))[:size]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(made[name])
    return made


def same(found: dict[str, bytes], wanted: dict[str, bytes]) -> bool:
    """Compare by names first; a failure shows no megabytes."""
    assert sorted(found) == sorted(wanted)
    assert [name for name in wanted if found[name] != wanted[name]] == []
    return True


def test_every_name_and_size_arrives_once_and_a_second_pass_sends_nothing(
    app_env: AppEnv, rclone_server: RcloneServer, front: Front, scans: Path
) -> None:
    made = filled(scans)
    first = app_env.sync()
    assert (first["uploaded"], first["held"], first["due"]) == (len(made), 0, 0)
    assert same(rclone_server.objects(), made)
    assert sorted(front.names()) == sorted(made), "one URL for each document"
    second = app_env.sync()
    assert (second["uploaded"], second["unchanged"], second["requests"]) == (0, len(made), 0)
    (scans / "one.pdf").write_bytes(b"another version")
    assert app_env.sync()["uploaded"] == 1
    assert same(rclone_server.objects(), made | {"one.pdf": b"another version"})


def test_an_expired_url_is_refused_and_a_new_one_asked_for(
    app_env: AppEnv, rclone_server: RcloneServer, front: Front, scans: Path
) -> None:
    (scans / "a.pdf").write_bytes(b"a")
    old = rclone_server.sign("put_object", "a.pdf", lifetime=1)
    ends = int(time.time()) + 2.1  # its date is cut to the second, and so is the server's comparison
    until(lambda: time.time() > ends, what="the URL's end")
    answer = httpx.put(old, content=b"too late", trust_env=False)
    assert (answer.is_success, rclone_server.objects()) == (False, {})
    urls = [old]
    front.sign = lambda verb, name: urls.pop() if urls else rclone_server.sign(verb, name)
    report = app_env.sync()
    assert (report["uploaded"], report["held"]) == (1, 0)
    assert front.names() == ["a.pdf", "a.pdf"]
    assert rclone_server.objects() == {"a.pdf": b"a"}


def test_what_is_signed_with_another_key_is_refused_and_never_called_sent(
    app_env: AppEnv, rclone_server: RcloneServer, front: Front, scans: Path
) -> None:
    (scans / "a.pdf").write_bytes(b"a")
    for wrong in (
        rclone_server.sign("put_object", "a.pdf", secret="another secret"),
        rclone_server.sign("put_object", "b.pdf").replace("b.pdf", "a.pdf"),
    ):
        assert httpx.put(wrong, content=b"a", trust_env=False).status_code == 403
    front.sign = lambda verb, name: rclone_server.sign(verb, name, secret="another secret")
    report = app_env.sync("--timeout", "3s", code=75)
    assert (report["uploaded"], report["held"], report["due"]) == (0, 0, 1)
    assert rclone_server.objects() == {}
    front.sign = rclone_server.sign
    assert app_env.sync()["uploaded"] == 1
    assert rclone_server.objects() == {"a.pdf": b"a"}


@pytest.mark.parametrize("size", [100_000, 3 * MIB])
def test_bytes_damaged_on_their_way_are_sent_again(
    app_env: AppEnv, rclone_server: RcloneServer, scans: Path, opened: ExitStack, size: int
) -> None:
    """The storage refuses them because of their Content-MD5."""
    line, front = damaged_path(app_env, opened, rclone_server)
    line.damaged = 1
    (scans / "a.pdf").write_bytes(b"right" * (size // 5))
    report = app_env.sync()
    assert (report["uploaded"], report["held"]) == (1, 0)
    assert line.statuses == [400, 200]
    assert front.names() == ["a.pdf", "a.pdf"]
    assert same(rclone_server.objects(), {"a.pdf": b"right" * (size // 5)})


def test_what_is_damaged_each_time_is_never_called_sent(
    app_env: AppEnv, rclone_server: RcloneServer, scans: Path, opened: ExitStack
) -> None:
    line, _ = damaged_path(app_env, opened, rclone_server)
    line.damaged = 1_000_000
    (scans / "small.pdf").write_bytes(b"right" * 20_000)
    (scans / "large.pdf").write_bytes(b"right" * 400_000)
    report = app_env.sync("--timeout", "3s", code=75)
    assert (report["uploaded"], report["held"], report["due"]) == (0, 0, 2)
    assert not rclone_server.objects(), "refused by their Content-MD5"


def test_objects_come_down_and_only_when_they_changed(
    app_env: AppEnv, rclone_server: RcloneServer, front: Front
) -> None:
    folder = app_env.download("reports", "wootiv", objects='["out/latest 100%.csv", "big.zip"]')
    (rclone_server.folder / "out").mkdir()
    wanted = {"out/latest 100%.csv": b"figures", "big.zip": bytes(range(256)) * 9000}
    for name, content in wanted.items():
        (rclone_server.folder / name).write_bytes(content)
    assert app_env.sync()["downloaded"] == 2
    assert same({str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}, wanted)
    assert app_env.sync()["downloaded"] == 0
    assert len(front.names("get_object")) == 4


@pytest.mark.anyio
@pytest.mark.parametrize("etags", ["md5", "sha1"])
async def test_a_download_that_broke_off_goes_on_and_is_whole(
    app_env: AppEnv, store: Callable[..., RcloneServer], opened: ExitStack, tmp_path: Path, etags: str
) -> None:
    """Rclone answers a range with 200 and Content-Range, and takes no notice of If-Match."""
    rclone_server = store("--etag-hash", etags)
    line, front = damaged_path(app_env, opened, rclone_server)
    clock = SystemClock()
    options = HttpOptions(timeout=5.0)
    clients = HttpClient("Wootiv", clock, options), HttpClient("Wootiv's storage", clock, options)
    urls, key = SignedUrlPolicy(front.url), StaticKey("wootiv-demo-key")
    wootiv = Wootiv(*clients, urls, WootivOptions(front.url), key=key, clock=clock)
    content, other = bytes(range(256)) * 8000, bytes(reversed(range(256))) * 8000
    (rclone_server.folder / "big.zip").write_bytes(content)
    to = tmp_path / "big.zip"

    async def cut() -> None:
        line.cut_after = 1_000_000
        with pytest.raises(RemoteError) as failure:
            await wootiv.fetch("big.zip", to, None)
        assert failure.value.kind == "cut"
        assert 0 < to.stat().st_size <= 1_000_000

    await cut()
    await wootiv.fetch("big.zip", to, None)
    assert "range: bytes=1000000-" in line.heads[-1].lower()
    assert (to.read_bytes() == content) is True
    to.unlink()
    await cut()
    (rclone_server.folder / "big.zip").write_bytes(other)
    with pytest.raises(RemoteError):
        await wootiv.fetch("big.zip", to, None)
    await wootiv.fetch("big.zip", to, None)
    assert (to.read_bytes() == other) is True
    await wootiv.aclose()
