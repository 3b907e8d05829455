"""Test `[alerts]`, `[[alerts.to]]` and `[heartbeat]`: validation and sources of secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from docferry.errors import ConfigError
from docferry.settings import Settings, load

EMAIL = """\
name = "ops"
kind = "email"
smtp = "smtps://me@mail.example.com"
from = "a@example.com"
to = ["b@example.com"]
"""
HOOK = 'name = "hook"\nkind = "webhook"\nurl = "https://example.com/x"\n'


def loaded(tmp_path: Path, text: str, **environ: str) -> Settings:
    path = tmp_path / "docferry.toml"
    path.write_text(text)
    path.chmod(0o600)
    return load(path, {"HOME": str(tmp_path), **environ})


def problems(tmp_path: Path, text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text, **environ)
    return str(caught.value)


def to(*receivers: str) -> str:
    return "".join(f"[[alerts.to]]\n{receiver}" for receiver in receivers)


def test_the_defaults(tmp_path: Path) -> None:
    settings = loaded(tmp_path, "")
    assert (settings.alerts.after, settings.alerts.repeat, settings.alerts.digest) == (300, 86_400, None)
    assert (settings.alerts.oldest_due, settings.alerts.disk_free, settings.alerts.to) == (3600, 1_000_000_000, ())
    assert not settings.heartbeat.is_set
    assert settings.heartbeat.every == 300


def test_receivers(tmp_path: Path) -> None:
    settings = loaded(tmp_path, to(EMAIL + 'events = ["key", "q*"]\n', HOOK) + '[heartbeat]\nurl = "https://hc/x"\n')
    ops, hook = settings.alerts.to
    assert (ops.sender, ops.to) == ("a@example.com", ("b@example.com",))
    assert [event for event in ("key", "queue", "held") if ops.wants(event)] == ["key", "queue"]
    assert hook.wants("held")
    assert hook.address().value == "https://example.com/x"
    assert settings.heartbeat.address().value == "https://hc/x"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (to('name = "a"\n'), 'alerts.to[0].kind: is missing; say which: "email"'),
        (to('kind = "ntfy"\nurl = "https://x/y"\n'), "alerts.to[0].name: is missing; give it a name of its own"),
        (to('name = "a"\nkind = "fax"\n'), 'alerts.to[0].kind = "fax": must be "email", "webhook"'),
        (to('name = "a"\nkind = "email"\n'), "a receiver of kind email needs smtp"),
        (to('name = "a"\nkind = "webhook"\n'), "a receiver of kind webhook needs url or url_file"),
        (to('name = "a"\nkind = "command"\n'), "a receiver of kind command needs command"),
        (to(HOOK + 'command = ["x"]\n'), "a receiver of kind webhook has no command; remove it"),
        (to(HOOK + 'secret_fil = "x"\n'), 'alerts.to[0].secret_fil: unknown key; did you mean "secret_file"?'),
        (to(HOOK.replace("https", "ftp")), 'is no address; write it like "https://example.com/alerts"'),
        (to(HOOK.replace("example", "me:canary@example")), "is no address"),
        (to(EMAIL.replace("me@", "me:canary@")), "must not hold the password; put it in password_file"),
        (to(EMAIL.replace("smtps:", "http:")), "is no mail server"),
        (to(EMAIL.replace("b@example.com", "b@example.com\\r\\nBcc: c@d")), "must be a bare mail address"),
        (to(EMAIL.replace("b@example.com", "Ops <b@example.com>")), "must be a bare mail address"),
        (to(HOOK + 'events = ["heldd"]\n'), "has a pattern that fits no event; the events are held, gate,"),
        (to(HOOK.replace('"hook"', '"a b"')), 'must be a plain name of letters, digits, "_" and "-"'),
        (to(HOOK, HOOK), 'two receivers whose names are alike: "hook"'),
        (to(HOOK.replace('"hook"', '"a-b"'), HOOK.replace('"hook"', '"a_b"')), 'names are alike: "a_b"'),
        ("[alerts.to]\nname = 'x'\n", "alerts.to: must be written with two brackets: [[alerts.to]]"),
        ('[alerts]\ndigest = "7 o\'clock"\n', 'is no time of day; write it like "07:00"'),
        ('[alerts]\ndigest = "24:00"\n', "is no time of day"),
        ('[alerts]\nrepeat = "0s"\n', "must be more than 0"),
        ('[heartbeat]\nurl = "https://a/b"\nurl_file = "x"\n', "has url and url_file; keep one of them"),
    ],
)
def test_what_is_wrong_is_said_with_its_cure(tmp_path: Path, text: str, said: str) -> None:
    found = problems(tmp_path, text)
    assert said in found
    assert "canary" not in found


def private(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_secret_comes_from_the_first_place_that_has_one(tmp_path: Path) -> None:
    private(tmp_path / "smtp.password", "from-file\n")
    (tmp_path / "credentials").mkdir(mode=0o700)
    private(tmp_path / "credentials" / "alert_night-shift", "from-credential\n")
    text = to(EMAIL.replace('"ops"', '"night-shift"') + 'password_file = "smtp.password"\n')
    variable = {"DOCFERRY_ALERTS__NIGHT_SHIFT__PASSWORD": "from-environment"}
    (receiver,) = loaded(tmp_path, text, **variable).alerts.to
    credentials = {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}
    assert receiver.secret(variable | credentials).value == "from-environment"
    assert receiver.secret(credentials).value == "from-credential"
    assert receiver.secret({}).value == "from-file"
    (tmp_path / "smtp.password").write_text("changed\n")
    assert receiver.secret({}).value == "changed"
    (tmp_path / "smtp.password").chmod(0o666)
    found = receiver.secret({})
    assert found.value is None
    assert "chmod" in (found.problem or "")
    assert "from-" not in repr(receiver)


def test_a_file_that_others_can_read_is_refused_at_once(tmp_path: Path) -> None:
    private(tmp_path / "hook.secret", "whsec_x").chmod(0o644)
    assert "others can read" in problems(tmp_path, to(HOOK + 'secret_file = "hook.secret"\n'))


def test_a_variable_of_no_receiver_is_said(tmp_path: Path) -> None:
    found = problems(tmp_path, to(EMAIL, HOOK), DOCFERRY_ALERTS__OSP__PASSWORD="canary")
    assert found == "$DOCFERRY_ALERTS__OSP__PASSWORD: belongs to no receiver; there are: ops, hook"


def test_any_scalar_can_come_from_the_environment(tmp_path: Path) -> None:
    environ = {"DOCFERRY_ALERTS__AFTER": "1m", "DOCFERRY_ALERTS__TO__0__URL": "https://example.com/other"}
    settings = loaded(tmp_path, to(HOOK), DOCFERRY_HEARTBEAT__URL="https://hc/y", **environ)
    assert settings.alerts.after == 60
    assert settings.alerts.to[0].url == "https://example.com/other"
    assert settings.heartbeat.url == "https://hc/y"


def test_an_address_in_a_file_is_judged_when_it_is_read(tmp_path: Path) -> None:
    file = private(tmp_path / "url", "not an address\n")
    (receiver,) = loaded(tmp_path, to(HOOK.replace('url = "https://example.com/x"', 'url_file = "url"'))).alerts.to
    assert "is no address" in (receiver.address().problem or "")
    file.write_text("https://example.com/z\n")
    assert receiver.address().value == "https://example.com/z"
