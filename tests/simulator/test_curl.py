"""Test the simulator with curl: multipart, signed URLs, ranges."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from docferry.simulator import SimulatorOptions, SimulatorThread
from simulator.conftest import Start
from simulator.rawclient import CODAT, COMPANY, LIST, UPLOAD, WOOTIV

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def curl(*arguments: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Status and body."""
    named = [each for name, value in (headers or {}).items() for each in ("-H", f"{name}: {value}")]
    done = subprocess.run(
        ["curl", "-sS", "--noproxy", "*", "--max-time", "20", "-w", "\n%{http_code}", *named, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def files(folder: Path) -> dict[str, Path]:
    """Sizes around the blocks in which bodies come, and names that need quoting."""
    sizes = {"small.pdf": 1, "empty.csv": 0, 'a "quoted" one;,=.pdf': 70_000, "grüße 日本.png": 1_500_000}
    for number, (name, size) in enumerate(sizes.items()):
        (folder / name).write_bytes(bytes([number + 65]) * size)
    return {name: folder / name for name in sizes}


def form_of(path: Path) -> list[str]:
    quoted = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return ["-F", f'file=@"{quoted}"']


def test_one_file_a_request(start: Start, tmp_path: Path) -> None:
    running = start()
    for path in files(tmp_path).values():
        assert curl(*form_of(path), running.url + UPLOAD, headers=CODAT) == (200, "")
    _the_same(running, tmp_path)


def test_many_files_in_one_request(start: Start, tmp_path: Path) -> None:
    running = start()
    arguments = [each for path in files(tmp_path).values() for each in form_of(path)]
    assert curl(*arguments, running.url + UPLOAD, headers=CODAT) == (200, "")
    assert running.simulator.requests["codat.upload"] == 1
    _the_same(running, tmp_path)


@pytest.mark.parametrize("escaping", [[], ["--form-escape"]])
def test_quotes_in_names_either_way(start: Start, tmp_path: Path, escaping: list[str]) -> None:
    running = start()
    path = tmp_path / 'say "hi".pdf'
    path.write_bytes(b"hi")
    assert curl(*escaping, *form_of(path), running.url + UPLOAD, headers=CODAT) == (200, "")
    assert [stored.name for stored in running.simulator.stored] == ['say "hi".pdf']


def test_a_chunked_multipart_is_taken(start: Start, tmp_path: Path) -> None:
    running = start()
    path = files(tmp_path)["grüße 日本.png"]
    headers = CODAT | {"Transfer-Encoding": "chunked"}
    assert curl(*form_of(path), running.url + UPLOAD, headers=headers) == (200, "")
    assert running.simulator.stored[0].content == path.read_bytes()


def test_a_refused_upload_tells_curl_why(start: Start, tmp_path: Path) -> None:
    running = start()
    path = tmp_path / "large.pdf"
    path.write_bytes(bytes(11 * 1024 * 1024))
    status, body = curl(*form_of(path), running.url + UPLOAD, headers=CODAT)
    assert (status, json.loads(body)["validation"]["errors"][0]["validatorName"]) == (400, "FileSize")
    assert curl(*form_of(path), running.url + UPLOAD)[0] == 401
    assert running.simulator.stored == []


def test_a_signed_put_and_its_download(start: Start, tmp_path: Path) -> None:
    running = start()
    path = files(tmp_path)["grüße 日本.png"]
    wish = json.dumps({"filename": f"in/{path.name}"})
    _, made = curl("-d", wish, f"{running.url}/aws/get-signed-put-url", headers=WOOTIV)
    assert curl("-T", str(path), json.loads(made)["url"]) == (200, "")
    _the_same_object(running, path)
    _, found = curl("-g", f"{running.url}/aws/buckets/in/gr%C3%BC%C3%9Fe%20%E6%97%A5%E6%9C%AC.png", headers=WOOTIV)
    got = tmp_path / "got.png"
    got.write_bytes(path.read_bytes()[:1_000_000])
    assert curl("-C", "-", "-o", str(got), json.loads(found)["signedUrl"])[0] == 206
    assert got.read_bytes() == path.read_bytes()


def test_a_signed_post(start: Start, tmp_path: Path) -> None:
    running = start(SimulatorOptions(signed="post"))
    path = files(tmp_path)["grüße 日本.png"]
    wish = json.dumps({"filename": f"in/{path.name}"})
    _, answer = curl("-d", wish, f"{running.url}/aws/get-signed-put-url", headers=WOOTIV)
    made = json.loads(answer)
    fields = [each for name, value in made["fields"].items() for each in ("-F", f"{name}={value}")]
    assert curl(*fields, *form_of(path), made["url"]) == (204, "")
    _the_same_object(running, path)


def test_the_zip(start: Start, tmp_path: Path) -> None:
    running = start()
    running.simulator.put_company_file(COMPANY, "a.pdf", b"x" * 2_000_000, uploaded="2026-01-02T03:04:05Z")
    got = tmp_path / "got.zip"
    assert curl("-o", str(got), f"{running.url}{LIST}/download?date=2026-01-02", headers=CODAT)[0] == 200
    shutil.unpack_archive(got, tmp_path / "out")
    assert (tmp_path / "out/Business file upload/a.pdf").read_bytes() == b"x" * 2_000_000


def _the_same(running: SimulatorThread, folder: Path) -> None:
    sent = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert {stored.name: stored.sha256 for stored in running.simulator.stored} == sent
    assert all(stored.content == (folder / stored.name).read_bytes() for stored in running.simulator.stored)


def _the_same_object(running: SimulatorThread, path: Path) -> None:
    (stands,) = running.simulator.objects.values()
    assert (stands.key, stands.content) == (f"in/{path.name}", path.read_bytes())
