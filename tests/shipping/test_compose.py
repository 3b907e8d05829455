"""Test the compose file: valid by the Compose Specification, and consistent with the image and the program."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from docferry import settings

#: schema/compose-spec.json of github.com/compose-spec/compose-spec at 170098b (Apache-2.0), without its white space.
SCHEMA = Path(__file__).parent / "data" / "compose-spec.json"


@pytest.fixture
def compose(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((root / "packaging" / "compose.yaml").read_text())
    return found


def problems(compose: dict[str, Any]) -> list[str]:
    jsonschema: Any = importlib.import_module("jsonschema")  # it has no types
    return [error.message for error in jsonschema.Draft7Validator(json.loads(SCHEMA.read_text())).iter_errors(compose)]


def test_the_specification_accepts_it(compose: dict[str, Any]) -> None:
    assert problems(compose) == []
    compose["services"]["docferry"]["readonly"] = True
    assert "readonly" in "".join(problems(compose))


def test_it_has_no_privileges_and_keeps_only_its_state(compose: dict[str, Any], root: Path) -> None:
    service = compose["services"]["docferry"]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    writable = [each.split(":") for each in service["volumes"] if not each.endswith(":ro")]
    assert writable == [["data", "/data"]]
    image = (root / "packaging" / "build-image").read_text()
    assert "--volume /data" in image
    assert "DOCFERRY_STATE_DIR=/data" in image


def test_the_secret_and_the_grace_are_those_of_the_program(compose: dict[str, Any], tmp_path: Path) -> None:
    service = compose["services"]["docferry"]
    config = tmp_path / "docferry.toml"
    config.write_text("state_dir = '/data'\n")
    (tmp_path / "codat_api_key").write_text("the-key\n")
    assert service["environment"] == {"CREDENTIALS_DIRECTORY": "/run/secrets"}
    assert service["secrets"] == ["codat_api_key"]
    loaded = settings.load(config, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert loaded.secrets({"CREDENTIALS_DIRECTORY": str(tmp_path)}).codat == "the-key"
    grace = re.fullmatch(r"(\d+)s", service["stop_grace_period"])
    assert grace is not None
    assert int(grace[1]) > loaded.stop_grace
