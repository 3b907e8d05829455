"""Test that `check` warns where two mappings can give one object name."""

from __future__ import annotations

from pathlib import Path

import pytest

from docferry import settings
from docferry.cli.local_checks import object_names


def warned(folder: Path, *templates: str) -> list[str]:
    lines = ['[wootiv]\nbase_url = "https://wootiv.example.com"']
    for number, template in enumerate(templates):
        root = folder / str(number)
        root.mkdir()
        lines.append(f'[[upload]]\nname = "m{number}"\nfolder = "{root}"\nto = "wootiv"\nobject_name = "{template}"')
    config = folder / "docferry.toml"
    config.write_text("\n".join(lines))
    return [finding.subject for finding in object_names(settings.load(config, {}).uploads)]


@pytest.mark.parametrize(
    ("templates", "expected"),
    [
        (["{path}", "{path}"], ["m1"]),
        (["{path}", "scans/{path}"], ["m1"]),
        (["east/{path}", "west/{path}"], []),
        (["{mapping}/{path}", "{mapping}/{path}"], []),
        (["{path}"], []),
    ],
)
def test_where_names_can_collide_the_second_mapping_is_named(
    tmp_path: Path, templates: list[str], expected: list[str]
) -> None:
    assert warned(tmp_path, *templates) == expected
