"""Test `docferry config`: example, output, hidden keys, schema."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import trustme

from docferry.cli import config
from docferry.settings import Settings, load, units

CANARY = "canary-7f3a9c2e-key"


def loaded(path: Path, text: str) -> Settings:
    path.write_text(text)
    path.chmod(0o600)
    return load(path, {"HOME": "/home/u"})


def everything(tmp_path: Path) -> str:
    """Return the example with every commented key in force."""
    authority = trustme.CA()
    client = authority.issue_cert("client")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    client.cert_chain_pems[0].write_to_path(str(tmp_path / "client.pem"))
    client.private_key_pem.write_to_path(str(tmp_path / "client.key"))
    (tmp_path / "client.key").chmod(0o600)
    text = re.sub(r"(?m)^#(?=[a-z\[])", "", config.init_text())
    text = text.replace("/etc/ssl/certs/ca-certificates.crt", str(tmp_path / "ca.pem"))
    return text.replace("/etc/docferry/client.", str(tmp_path / "client."))


def test_the_example_loads_as_it_is(tmp_path: Path) -> None:
    settings = loaded(tmp_path / "docferry.toml", config.init_text())
    assert [upload.name for upload in settings.uploads] == ["acme-bank"]
    assert settings.warnings == ()


def test_names_are_listed_though_the_rest_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "docferry.toml"
    file.write_text('workers = "none"\n[[upload]]\nname = "acme-bank"\nfolder = 5\n[[download]]\nname = "inbox"\n')
    assert config.mapping_names(file, {}) == "acme-bank\ninbox\n"
    file.write_text("upload = 5\ndownload = [1, {name = 2}]\n")
    assert config.mapping_names(file, {}) == ""


def test_the_example_loads_with_every_key_in_force(tmp_path: Path) -> None:
    settings = loaded(tmp_path / "docferry.toml", everything(tmp_path))
    assert [upload.configured_name for upload in settings.uploads] == ["acme-bank", "customers", "scans"]
    assert [download.name for download in settings.downloads] == ["acme-inbox@sftp-1", "statements@sftp-1"]
    assert settings.state_dir == Path("/var/lib/docferry")


def test_the_example_says_the_defaults(tmp_path: Path) -> None:
    example = loaded(tmp_path / "docferry.toml", config.init_text())
    bare = loaded(tmp_path / "bare.toml", "")
    excluded = {"uploads", "downloads"}
    assert example.model_dump(exclude=excluded) == bare.model_dump(exclude=excluded)
    (upload,) = example.uploads
    default = type(upload).model_validate({"name": "x", "folder": "/x", "to": "codat"})
    places = {"name", "folder", "company_id", "connection_id"}
    assert upload.model_dump(exclude=places) == default.model_dump(exclude=places)


def test_the_example_names_every_key(tmp_path: Path) -> None:
    text = everything(tmp_path) + '\n[codat.x]\napi_key = ""\n'
    definitions = config.schema()["$defs"]
    for table in (config.schema(), *definitions.values()):
        for key in table["properties"]:
            assert re.search(rf"(?m)^(\[\[?)?{key}\b", text), key


def test_what_is_shown_means_the_same(tmp_path: Path) -> None:
    settings = loaded(tmp_path / "docferry.toml", everything(tmp_path).replace('max_size = "10MB"', "max_size = 12345"))
    again = loaded(tmp_path / "shown.toml", config.show(settings, {}))
    assert [u.settle for u in again.uploads] == [u.settle for u in settings.uploads]
    effective = {"uploads": {"__all__": {"own_settle"}}}
    assert again.model_dump(exclude=effective) == settings.model_dump(exclude=effective)


def test_shown_settings_hide_keys_and_say_where_they_come_from(tmp_path: Path) -> None:
    (tmp_path / "wootiv.key").touch(0o600)
    (tmp_path / "wootiv.key").write_text(CANARY)
    settings = loaded(
        tmp_path / "docferry.toml",
        f'[codat]\napi_key = "{CANARY}"\nproxy = "http://u:{CANARY}@proxy:3128"\n'
        '[wootiv]\napi_key_file = "wootiv.key"\n',
    )
    text = config.show(settings, {})
    assert CANARY not in text
    values = tomllib.loads(text)
    assert values["codat"]["api_key"] == values["wootiv"]["api_key"] == "(hidden)"
    assert values["codat"]["proxy"] == "http://(hidden)@proxy:3128"
    assert f"# from api_key in {tmp_path / 'docferry.toml'}" in text
    assert f"# from api_key_file {tmp_path / 'wootiv.key'}" in text
    by_variable = config.show(settings, {"CODAT_API_KEY": CANARY + "2"})
    assert CANARY not in by_variable
    assert "# from $CODAT_API_KEY" in by_variable
    assert "# api_key: none found" in config.show(loaded(tmp_path / "bare.toml", ""), {})


def test_what_stands_for_a_hidden_key_is_no_key(tmp_path: Path) -> None:
    settings = loaded(tmp_path / "docferry.toml", '[codat]\napi_key = "(hidden)"\n')
    assert settings.secrets({}).codat is None


def test_odd_text_is_still_toml(tmp_path: Path) -> None:
    written = (
        '[wootiv]\nbase_url = "https://w"\n[[upload]]\nname = "a"\nto = "wootiv"\nfolder = "/srv/q\\"b\\\\s\\u202e"\n'
    )
    settings = loaded(tmp_path / "docferry.toml", written)
    text = config.show(settings, {})
    assert "\u202e" not in text
    assert tomllib.loads(text)["upload"][0]["folder"] == settings.uploads[0].folder == '/srv/q"b\\s\u202e'


@pytest.mark.parametrize(
    ("number", "said"), [(0.5, '"500ms"'), (5400, '"1h30m"'), (0.0001, "0.0001"), (604_800, '"7d"')]
)
def test_durations_are_shown_as_written_where_that_loses_nothing(number: float, said: str, tmp_path: Path) -> None:
    settings = loaded(tmp_path / "docferry.toml", f"settle = {number}")
    assert f"settle = {said}\n" in config.show(settings, {})


def test_the_schema_accepts_the_example_and_refuses_other_keys(tmp_path: Path) -> None:
    schema = json.loads(json.dumps(config.schema()))
    values = json.loads(json.dumps(tomllib.loads(everything(tmp_path)), default=str))
    assert faults(schema, values, schema) == []
    assert faults(schema, values | {"worker": 1}, schema) == ["worker"]
    assert faults(schema, {"settle": "5 parsecs", "workers": 0, "upload": [{"name": "a"}]}, schema) != []
    assert "state_dir" not in schema["required"]


@pytest.mark.parametrize("written", ["500ms", "2s", "15m", "1h30m", "7d", "5", "0.5", "1.5 h", "5x", "", "h", "1h 30"])
def test_the_schema_takes_the_durations_that_are_taken(written: str) -> None:
    try:
        units.seconds(written)
    except ValueError:
        assert not re.search(units.DURATION_PATTERN, written)
    else:
        assert re.search(units.DURATION_PATTERN, written)


def faults(schema: dict[str, Any], value: Any, root: dict[str, Any], at: str = "") -> list[str]:
    """Return the places where a value breaks a schema, for the parts of JSON Schema that docferry uses."""
    if "$ref" in schema:
        return faults(root["$defs"][schema["$ref"].rpartition("/")[2]], value, root, at)
    if "anyOf" in schema:
        return min((faults(each, value, root, at) for each in schema["anyOf"]), key=len)
    names = schema.get("type", [])
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}
    allowed = [kinds[name] for name in ([names] if isinstance(names, str) else names) if name != "null"]
    if allowed and not any(isinstance(value, kind) for kind in allowed):  # type: ignore[arg-type] # a table of kinds
        return [at]
    wrong = "enum" in schema and value not in schema["enum"]
    wrong |= isinstance(value, str) and not re.search(schema.get("pattern", ""), value)
    wrong |= isinstance(value, int | float) and not schema.get("minimum", value) <= value <= schema.get(
        "maximum", value
    )
    found = [at] if wrong else []
    if isinstance(value, list):
        found += [f for each in value for f in faults(schema.get("items", {}), each, root, at)]
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        found += [key for key in schema.get("required", []) if key not in value]
        others = schema.get("additionalProperties")
        for key, each in value.items():
            rule = properties.get(key, others)
            found += faults(rule, each, root, key) if isinstance(rule, dict) else [key]
    return found
