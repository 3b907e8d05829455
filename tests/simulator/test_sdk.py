"""Test the simulator with Codat's own SDK."""

from __future__ import annotations

import base64
import io
import re
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from app_env import AppEnv
from docferry.simulator import Fault, Simulator, SimulatorOptions
from simulator.conftest import Start
from simulator.rawclient import COMPANY, CONNECTION

OTHER = "11111111-2222-4333-8444-555555555555"
NAMES = ["plain.pdf", 'a "quoted" one;,=.pdf', "grüße 日本.png", "50 % + more.csv", "UPPER.PDF"]
Client = Callable[..., Any]


@pytest.fixture(scope="session")
def sdk() -> SimpleNamespace:
    """Import the SDK, which takes a second or more, only in its tests."""
    from codat_lending import CodatLending
    from codat_lending.models import errors, shared
    from codat_lending.utils.retries import BackoffStrategy, RetryConfig

    return SimpleNamespace(
        CodatLending=CodatLending, shared=shared, errors=errors, Backoff=BackoffStrategy, Retries=RetryConfig
    )


@pytest.fixture
def client(sdk: SimpleNamespace) -> Client:
    """`client(simulator)` returns the SDK with the right key, with one attempt by default."""

    def make(simulator: Simulator, key: str | None = None, retries: Any = None, line: Any = None) -> Any:
        written = base64.b64encode((key or simulator.options.codat_key).encode()).decode()
        return sdk.CodatLending(
            security=sdk.shared.Security(auth_header=f"Basic {written}"),
            server_url=simulator.url,
            retry_config=retries or sdk.Retries("none"),
            client=line,
        )

    return make


def of_company(**more: str) -> dict[str, str]:
    return {"company_id": COMPANY, **more}


def send(sdk: SimpleNamespace, api: Any, name: str, content: bytes, company: str = COMPANY) -> None:
    file = sdk.shared.FileUpload(file=sdk.shared.CodatFile(file_name=name, content=content))
    api.file_upload.upload(request={"company_id": company, "connection_id": CONNECTION, "file_upload": file})


def zipped(api: Any, **more: str) -> dict[str, bytes]:
    answer = api.file_upload.download(request=of_company(**more))
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        return {each: archive.read(each) for each in archive.namelist()}


def test_what_it_uploads_is_stored_under_its_name_byte_for_byte(
    start: Start, sdk: SimpleNamespace, client: Client
) -> None:
    simulator = start().simulator
    api = client(simulator)
    sent = {name: (name.encode() * 9000)[: 37 + 40_000 * number] for number, name in enumerate(NAMES)}
    sent |= {"one.pdf": b"\n", "boundary.pdf": b"--\r\n--" * 999, "largest.pdf": bytes(range(256)) * 4096 * 10}
    for name, content in sent.items():
        send(sdk, api, name, content)
    assert {each.name: each.content for each in simulator.stored} == sent
    assert {(each.company, each.connection) for each in simulator.stored} == {(COMPANY, CONNECTION)}
    assert simulator.requests == {"codat.upload": len(sent)}


def test_the_list_reads_as_its_files(start: Start, sdk: SimpleNamespace, client: Client) -> None:
    simulator = start().simulator
    api = client(simulator)
    assert api.file_upload.list_uploaded(request=of_company()) == []
    for name in NAMES:
        send(sdk, api, name, b"some bytes")
    simulator.put_company_file(COMPANY, "from the page.pdf", b"x", "Banking", "2022-10-23T00:00:00")
    files = api.file_upload.list_uploaded(request=of_company())
    assert all(isinstance(each, sdk.shared.File) for each in files)
    assert not any(each.additional_properties for each in files), "fields that Codat does not know"
    assert [each.file_name for each in files] == [*NAMES, "from the page.pdf"]
    assert [(each.source_type, each.display_name) for each in files[-2:]] == [("Other", None), ("Banking", None)]
    assert files[-1].uploaded == "2022-10-23T00:00:00"
    assert datetime.fromisoformat(files[0].uploaded).tzinfo is not None


def test_the_zip_of_a_day_a_moment_and_everything(start: Start, sdk: SimpleNamespace, client: Client) -> None:
    simulator = start().simulator
    api = client(simulator)
    send(sdk, api, "grüße 日本.png", b"today" * 5000)
    simulator.put_company_file(COMPANY, "old.pdf", b"old", uploaded="2022-10-23T09:00:00Z", integration="Xero")
    old = {"Xero/old.pdf": b"old"}
    new = {"Business file upload/grüße 日本.png": b"today" * 5000}
    assert zipped(api) == old | new
    assert zipped(api, date_="2022-10-23") == zipped(api, date_="2022-10-23T23:00:00Z") == old
    assert zipped(api, date_=datetime.fromtimestamp(simulator.stored[0].at, UTC).date().isoformat()) == new
    assert zipped(api, date_="2021-01-01") == {}


@pytest.mark.parametrize("status", ["Linked", "PendingAuth", "Deauthorized", "Unlinked"])
def test_a_connection_reads_as_its_model(start: Start, sdk: SimpleNamespace, client: Client, status: str) -> None:
    simulator = start(SimulatorOptions(connection_status={CONNECTION: status})).simulator
    found = client(simulator).connections.get(request=of_company(connection_id=CONNECTION))
    assert isinstance(found, sdk.shared.Connection)
    assert (found.id, found.status) == (CONNECTION, sdk.shared.DataConnectionStatus(status))
    assert (found.source_type, found.platform_name) == (sdk.shared.SourceType.OTHER, "Business file upload")
    assert not found.additional_properties


ASK: dict[str, Callable[[SimpleNamespace, Any], object]] = {
    "upload": lambda sdk, api: send(sdk, api, "a.pdf", b"a"),
    "list": lambda _, api: api.file_upload.list_uploaded(request=of_company()),
    "download": lambda _, api: api.file_upload.download(request=of_company()),
    "connection": lambda _, api: api.connections.get(request=of_company(connection_id=CONNECTION)),
}


def refused(sdk: SimpleNamespace, api: Any, what: str = "list") -> Any:
    """Return the SDK's error, which differs for a body that is not Codat's."""
    with pytest.raises(sdk.errors.ErrorMessage) as failure:
        ASK[what](sdk, api)
    error = failure.value
    assert error.data.status_code == error.status_code
    assert error.data.service
    assert error.data.error
    assert error.data.can_be_retried in ("Yes", "No")
    assert re.fullmatch(r"[0-9a-f]{32}", error.data.correlation_id)
    return error


@pytest.mark.parametrize("what", ASK)
@pytest.mark.parametrize("status", [401, 402, 403, 404, 429, 500, 503])
def test_each_error_that_is_documented_is_one_of_its_own(
    start: Start, sdk: SimpleNamespace, client: Client, what: str, status: int
) -> None:
    simulator = start(faults=[Fault("status", params={"status": status})]).simulator
    assert refused(sdk, client(simulator), what).status_code == status
    assert simulator.stored == []


def test_a_wrong_key_an_unknown_company_and_a_document_against_the_rules(
    start: Start, sdk: SimpleNamespace, client: Client
) -> None:
    simulator = start(SimulatorOptions(companies={COMPANY: set()})).simulator
    for what in ASK:
        assert refused(sdk, client(simulator, key="another"), what).status_code == 401
    for what in ("upload", "connection"):
        assert refused(sdk, client(simulator), what).status_code == 404
    simulator.options.companies = {OTHER: {CONNECTION}}
    for what in ASK:
        assert refused(sdk, client(simulator), what).status_code == 404
    with pytest.raises(sdk.errors.ErrorMessage) as failure:
        send(sdk, client(simulator), "program.exe", b"MZ", company=OTHER)
    (problem,) = failure.value.data.validation.errors
    assert (failure.value.status_code, problem.item_id) == (400, "program.exe")
    assert problem.message
    assert problem.validator_name
    assert simulator.stored == []


def test_what_the_files_api_does_not_have_is_said_in_its_own_words(
    start: Start, sdk: SimpleNamespace, client: Client
) -> None:
    api = client(start().simulator)
    for ask, wish in (
        (api.companies.list, {}),
        (api.companies.get, of_company()),
        (api.connections.list, of_company()),
    ):
        with pytest.raises(sdk.errors.ErrorMessage) as failure:
            ask(request=wish)
        assert failure.value.data.status_code == 404


def test_its_own_patience_ends_in_one_copy(start: Start, sdk: SimpleNamespace, client: Client) -> None:
    simulator = start().simulator
    patient = client(simulator, retries=sdk.Retries("backoff", sdk.Backoff(10, 2000, 1.5, 10_000)))
    simulator.set_faults(
        [Fault("status", first=1, params={"status": 503}), Fault("too_many", first=1, params={"retry_after": "1"})]
    )
    begun = simulator.clock.steady()
    send(sdk, patient, "a.pdf", b"a")
    assert simulator.clock.steady() - begun >= 1.0, "it was told to wait"
    assert [seen.status for seen in simulator.log] == [503, 429, 200]
    assert [each.content for each in simulator.stored] == [b"a"]


def test_a_quota_that_is_used_up_is_told_in_headers(start: Start, sdk: SimpleNamespace, client: Client) -> None:
    simulator = start(SimulatorOptions(daily_quota=1)).simulator
    with httpx.Client(trust_env=False) as line:  # the SDK's own policy would wait for the next quota
        api = client(simulator, line=line)
        assert api.file_upload.list_uploaded(request=of_company()) == []
        error = refused(sdk, api)
    assert (error.status_code, error.headers["x-rate-limit-limit"]) == (429, "1")
    assert error.headers["x-rate-limit-remaining"] == "0"
    assert 0 < int(error.headers["retry-after"]) <= 86_400
    assert datetime.fromisoformat(error.headers["x-rate-limit-reset"]).tzinfo is not None


def test_it_finds_what_docferry_sent(app_env: AppEnv, client: Client) -> None:
    folder = app_env.upload("bank")
    sent = {name: name.encode() * 3000 for name in NAMES}
    for name, content in sent.items():
        (folder / name).write_bytes(content)
    assert app_env.sync()["uploaded"] == len(sent)
    api = client(app_env.simulator)
    assert sorted(each.file_name for each in api.file_upload.list_uploaded(request=of_company())) == sorted(sent)
    assert zipped(api) == {f"Business file upload/{name}": content for name, content in sent.items()}
