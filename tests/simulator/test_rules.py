"""Test fault rules, options, and their files."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from docferry.errors import ConfigError
from docferry.simulator import KINDS, Fault, SimulatorOptions, load_faults, load_switches
from docferry.simulator.fault_effects import EFFECTS
from docferry.simulator.faults import Rules

UPLOAD = ("codat.upload", "POST /companies/c/connections/k/files")
LIST = ("codat.list", "GET /companies/c/files")


def drawn(faults: list[Fault], requests: list[tuple[str, str]], seed: int = 0, reused: bool = False) -> list[bool]:
    rules = Rules(faults, random.Random(seed))  # noqa: S311 - to be repeatable
    return [rules.select(*request, reused=reused) is not None for request in requests]


@pytest.mark.parametrize(
    ("match", "upload", "listing"),
    [
        ("*", True, True),
        ("codat.upload", True, False),
        ("codat.*", True, True),
        ("POST */files", True, False),
        ("* */files", True, True),
        ("re:^GET .*/files$", False, True),
        ("wootiv.*", False, False),
    ],
)
def test_which_requests_are_meant(match: str, upload: bool, listing: bool) -> None:
    assert drawn([Fault("stall", match)], [UPLOAD, LIST]) == [upload, listing]


def test_first_and_nth_count_only_what_matches() -> None:
    requests = [LIST, UPLOAD, LIST, UPLOAD, UPLOAD]
    assert drawn([Fault("stall", "codat.upload", first=2)], requests) == [False, True, False, True, False]
    assert drawn([Fault("stall", "codat.upload", nth=2)], requests) == [False, False, False, True, False]


def test_rates_are_kept_and_repeatable_by_their_seed() -> None:
    rule = [Fault("stall", rate=0.2)]
    selected = drawn(rule, [UPLOAD] * 5000)
    assert 900 < sum(selected) < 1100
    assert selected == drawn(rule, [UPLOAD] * 5000)
    assert selected != drawn(rule, [UPLOAD] * 5000, seed=1)
    assert sum(drawn([Fault("stall", rate=0.5, first=3)], [UPLOAD] * 100)) == 3
    assert sum(drawn([Fault("stall", rate=0)], [UPLOAD] * 100)) == 0


def test_the_first_rule_that_strikes_wins_and_all_count() -> None:
    faults = [Fault("stall", nth=1), Fault("redirect", nth=2), Fault("swallow")]
    rules = Rules(faults, random.Random(0))  # noqa: S311 - nothing is left to chance here
    drawn_kinds = [fault.kind for fault in (rules.select(*UPLOAD, reused=False) for _ in range(3)) if fault]
    assert drawn_kinds == ["stall", "redirect", "swallow"]


def test_only_a_kept_connection_can_be_stale() -> None:
    assert drawn([Fault("stale_keepalive", first=1)], [UPLOAD] * 2) == [False, False]
    assert drawn([Fault("stale_keepalive", first=1)], [UPLOAD] * 2, reused=True) == [True, False]


def test_every_kind_is_carried_out() -> None:
    assert EFFECTS.keys() == KINDS.keys()


TOML = """
[switches]
list_lag = 5
companies = { "c" = ["k"] }
signed = "post"

[[fault]]
kind = "lost_answer"
match = "codat.upload"
rate = 0.1
late = 45

[[fault]]
kind = "status"
first = 2
params = { status = 503, stored = true }
"""


def test_a_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(TOML)
    assert load_faults(path) == [
        Fault("lost_answer", "codat.upload", rate=0.1, params={"late": 45}),
        Fault("status", first=2, params={"status": 503, "stored": True}),
    ]
    options = load_switches(path)
    assert (options.list_lag, options.companies, options.signed) == (5.0, {"c": {"k"}}, "post")


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"fault": rows}])
def test_a_json_file(tmp_path: Path, wrap: object) -> None:
    path = tmp_path / "faults.json"
    path.write_text(json.dumps(wrap([{"kind": "stall"}])))  # type: ignore[operator]  # a lambda of the list above
    assert load_faults(path) == [Fault("stall")]
    assert load_switches(path) == SimulatorOptions()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[fault]]\nkind = 'lost_anser'", "did you mean 'lost_answer'"),
        ("[[fault]]\nkind = 7", "unknown kind 7"),
        ("[[fault]]\nmatch = '*'", "fault 1: has no kind"),
        (
            "[[fault]]\nkind = 'stall'\n[[fault]]\nkind = 'status'\nstats = 500",
            "fault 2: status has no parameter 'stats'",
        ),
        ("[[fault]]\nkind = 'stall'\nrate = 2", "rate must be between 0 and 1"),
        ("[[fault]]\nkind = 'stall'\nfirst = 0", "first must be a whole number"),
        ("[[fault]]\nkind = 'stall'\nnth = 'two'", "nth must be a whole number"),
        ("[[fault]]\nkind = 'stall'\nmatch = 're:('", "match is no regular expression"),
        ("[[fault]]\nkind = 'stall'\nmatch = 1", "match must be a string"),
        ("[[fault]]\nkind = 'stall'\nseconds = 'long'", "seconds must be a number"),
        ("[[fault]]\nkind = 'stall'\nstored = 1", "stored must be true or false"),
        ("[[fault]]\nkind = 'slow_read'\nparams = {rate = 0}", "rate must be above 0"),
        ("[[fault]]\nkind = 'stall'\nparams = 1", "params must be a table"),
        ("fault = 1", "must be a list of tables"),
        ("fault = [1]", "must be a table with a kind"),
        ("faults = []", "unknown key 'faults'"),
        ("nonsense", "is no TOML"),
    ],
)
def test_a_bad_file_is_told_by_its_problem(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        load_faults(path)


def test_a_missing_or_wrong_json_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_faults(tmp_path / "none.toml")
    path = tmp_path / "faults.json"
    for text, said in (("{", "is no JSON"), ("7", "must hold a table or a list")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            load_faults(path)


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"list_lagg": 1}, "unknown switch 'list_lagg'"),
        ({"list_lag": "long"}, "must be of type float"),
        ({"idempotency": 1}, "must be of type bool"),
        ({"requests_per_minute": 1.5}, "must be of type int"),
        ({"signed": "get"}, "must be one of put, post"),
        ({"swallow": [1]}, "must be a list of strings"),
        ({"companies": []}, "must be a table"),
        ({"companies": {"c": 1}}, "must be a list of strings"),
    ],
)
def test_a_wrong_switch_changes_none(wishes: dict[str, object], said: str) -> None:
    options = SimulatorOptions()
    with pytest.raises(ConfigError, match=said):
        options.change({"codat_key": "other", **wishes})
    assert options == SimulatorOptions()


def test_switches_change_and_come_back() -> None:
    options = SimulatorOptions()
    options.change({"daily_quota": 7, "rename": "nfc", "connection_status": {"k": "Unlinked"}, "latency": 1})
    assert (options.daily_quota, options.rename, options.latency) == (7, "nfc", 1.0)
    options.change({"daily_quota": None, "rename": None})
    assert (options.daily_quota, options.rename) == (None, None)
    options.reset()
    assert options == SimulatorOptions()
