"""List the issues that need a person, each with its fix, and with a button if one helps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlencode

from msgspec import Struct, field

from docferry.app.figures import Figures

#: The writing time of a file, and the clock offset of a remote, from which they are listed, seconds.
LONG_WRITTEN_S: Final = 3600.0
CLOCK_OFF_S: Final = 60.0
LITTLE_FREE: Final = 1_000_000_000

#: The names of held documents and the fixes, by reason.
HELD: Final = {
    "too_large": ("too large", "Split or compress them, or exclude them from the mapping."),
    "extension": ("of a type that the remote does not take", "Convert them, or exclude them from the mapping."),
    "empty": ("empty", "Write them again, or exclude them from the mapping."),
    "unreadable": ("unreadable", "Let docferry's user read them, then retry."),
    "unroutable": ("in a folder whose name is no UUID", "Rename the folder to the UUID it stands for."),
    "refused": ("refused by the remote", "See the reason, fix it, then retry."),
    "gave_up": ("given up after many tries", "Retry once the remote works again."),
    "undecidable": ("perhaps at the remote, perhaps not", "Look for them at the remote; a retry asks it again first."),
    "name_taken": ("without a free name at the remote", "Rename the file, or let the mappings' names differ."),
    "content": ("not what their extension says", "Give the file the right extension, then it is sent."),
    "incomplete": ("cut short", "Write the file again as a whole."),
    "infected": ("infected", "Remove the file. docferry never sends it."),
    "unscanned": ("not scanned for viruses", "Raise clamd's limits and antivirus.max_size, then retry."),
    "approval": ("waiting for approval", "Check them, then release those to be sent."),
    "metadata": ("with times or sizes that cannot be stored", "Copy the file again, then it is sent."),
}
#: Reasons for which the retry is the main button. With other reasons a person changes the file, which is noticed.
_RETRIED: Final = frozenset({"refused", "gave_up", "undecidable", "approval", "unreadable", "unscanned"})
_GATES: Final = {
    "key": ("refuses the API key", "Put the right key in place, then open the gate."),
    "account": ("says that the account must be settled", "Resolve it with the remote's operator, then open the gate."),
    "company": ("gives no access to the company", "Give the key access to the company, then open the gate."),
    "connection": ("does not know the connection", "Is it linked, and its id right? Run docferry check."),
    "redirected": ("sends requests elsewhere", "base_url may be wrong, or a proxy or login page is in between."),
    "stranger": ("is answered by another server", "A proxy or web page answers in its place; check the network."),
    "storage": ("reports a problem of its storage", "Look at the storage's account, bucket and quota."),
    "antivirus": ("gives no verdict", "Is clamd running, and may docferry use its socket? Nothing is sent meanwhile."),
    "quota": ("has no requests left today", "Nothing to do: uploads continue when the quota is reset."),
    "rate": ("asks for a pause", "Nothing to do: uploads continue by themselves."),
    "unreachable": ("cannot be reached", "Check the network; one document probes until it works again."),
    "failing": ("fails again and again", "One document probes until it works again."),
}


class Button(Struct, frozen=True):
    """Describe a form that changes something: its address, its fields, and its text."""

    action: str
    label: str
    fields: Mapping[str, str]
    confirm: str = ""  # text to open before the button shows
    is_main: bool = True  # whether it is the usual fix


class Issue(Struct, frozen=True):
    """Describe one issue for a person. `level`: "bad" stops documents, "warn" may."""

    level: str
    title: str
    subject: str
    detail: str = ""
    fix: str = ""
    link: str = ""
    link_label: str = ""
    button: Button | None = None
    key: str = field(default="")


def items(figures: Figures, emptied: frozenset[str], facts: Mapping[str, float | None], now: float) -> list[Issue]:
    """Return the issues for a person, the most severe first.

    `emptied` names mappings whose folder exists but is empty.
    """
    found = [*_queue(figures, facts), *_gates(figures), *_folders(figures, emptied), *_held(figures)]
    return [*found, *_hosts(figures), *_written(figures, now), *_clocks(figures)]


def quiet_gates(figures: Figures) -> list[Issue]:
    """Return the gates that time alone opens."""
    return [_gate(gate) for gate in figures["gates"] if not gate["needs_person"]]


def _queue(figures: Figures, facts: Mapping[str, float | None]) -> Iterator[Issue]:
    if figures["trouble"]:
        yield Issue(
            "bad",
            "The queue cannot be written",
            "database",
            figures["trouble"],
            "Free disk space, or end the program that locks it.",
        )
    if facts.get("config_last_reload_successful") == 0:
        fix = "Run docferry check, fix the problems, then send SIGHUP again."
        yield Issue("warn", "The configuration is broken", "SIGHUP", "docferry continues with the old one.", fix)
    free = facts.get("state_free_bytes")
    if free is not None and free < LITTLE_FREE:
        yield Issue("warn", "The disk is nearly full", "state folder", f"{free / 1e6:,.0f} MB are free.", "Make room.")


def _gates(figures: Figures) -> Iterator[Issue]:
    for gate in figures["gates"]:
        if gate["needs_person"]:
            yield _gate(gate)


def _gate(gate: Figures) -> Issue:
    remote, _, rest = gate["gate"].partition("/")
    title, fix = _GATES.get(gate["reason"], (f"is closed: {gate['reason']}", ""))
    button = Button("/actions/gate", "Open the gate", {"key": gate["gate"]})
    level = "bad" if gate["needs_person"] else "warn"
    title = f"{remote.capitalize()} {title}"
    return Issue(level, title, rest or remote, gate["detail"], fix, button=button, key=gate["next_probe"])


def _folders(figures: Figures, emptied: frozenset[str]) -> Iterator[Issue]:
    for row in (*figures["uploads"], *figures["downloads"]):
        if not row["problem"]:
            continue
        name = row["mapping"]
        if name in emptied:
            button = Button(
                "/actions/emptied", "Yes, I emptied it", {"mapping": name}, "I emptied this folder on purpose"
            )
            fix = "Is it mounted? If you emptied it yourself, say so: its documents that were not sent are then gone."
            yield Issue("bad", "The folder is suddenly empty", name, row["problem"], fix, button=button)
        else:
            title = "The folder cannot be read" if "to" in row else "The download fails"
            yield Issue("bad", title, name, row["problem"], "The mapping continues by itself once this is fixed.")


def _held(figures: Figures) -> Iterator[Issue]:
    for row in figures["held"]:
        mapping, reason, count = row["mapping"], str(row["reason"]), row["count"]
        called, fix = HELD.get(reason, (f"held as {reason}", "See why."))
        noun = "document" if count == 1 else "documents"
        query = {"mapping": mapping, "state": "held", "reason": reason}
        label = "Release" if reason == "approval" else "Retry"
        if count > 1:
            label = f"{label} all {count:,}"
        yield Issue(
            "warn" if reason == "approval" else "bad",
            f"{count:,} {noun} {'is' if count == 1 else 'are'} {called}",
            mapping,
            fix=fix.replace("them", "it") if count == 1 else fix,
            link="/documents?" + urlencode(query),
            link_label="See it" if count == 1 else "See them",
            button=Button("/actions/retry", label, query, is_main=reason in _RETRIED),
        )


def _written(figures: Figures, now: float) -> Iterator[Issue]:
    for row in figures["uploads"]:
        for each in row["unsettled"]:
            if now - seconds(each["since"]) >= LONG_WRITTEN_S:
                fix = "Is the program that writes it still running? docferry sends it when it is closed."
                yield Issue("warn", "A file has been written for a long time", row["mapping"], each["path"], fix)


def _hosts(figures: Figures) -> Iterator[Issue]:
    alive = {row["host"] for row in figures["hosts"] if row["alive"]}
    silent: dict[str, str] = {}
    for row in figures["hosts"]:
        if row["host"] not in alive:
            silent[row["host"]] = max(row["heartbeat"], silent.get(row["host"], ""))
        for mapping in row["unreadable"] if row["alive"] else ():
            detail = f"{row['host']} cannot read it; other hosts send its documents."
            yield Issue("warn", "A host cannot read a shared folder", mapping, detail, "Mount the share on that host.")
    for host, since in sorted(silent.items()):
        detail = f"Its last heartbeat came at {since}. Other hosts do its work where they can."
        yield Issue("bad", "A host has stopped", host, detail, "Start docferry there again, or stop it properly.")


def _clocks(figures: Figures) -> Iterator[Issue]:
    for row in figures["remotes"]:
        offset = row["clock_offset"]
        if offset is not None and abs(offset) > CLOCK_OFF_S:
            detail = f"{abs(offset):,.0f} s apart from {row['remote']}."
            yield Issue("warn", "The clock is wrong", "this machine", detail, "Set it: timedatectl set-ntp true")


def seconds(when: Any) -> float:
    """Return the wall seconds of a time in the figures."""
    return datetime.fromisoformat(when).timestamp()
