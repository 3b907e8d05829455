"""Report all problems of a configuration at once, as sentences that name the key and the fix."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, get_args

from pydantic import BaseModel, ValidationError

from docferry.model import escaped
from docferry.settings import cross_checks
from docferry.settings.sources import Loc, Written

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from docferry.settings import Settings

_QUIET: Final = frozenset(
    {"api_key", "database_url", "proxy", "base_url", "url", "smtp"}
)  # their values may contain a secret
#: The tables of one level, to which a misplaced key may belong.
_SECTIONS: Final = ("codat", "wootiv", "retry", "metrics", "web", "alerts", "heartbeat")
_MISSING: Final = {
    "name": "give it a name of its own",
    "folder": 'say which folder, as in "/srv/scans"',
    "to": 'say where to: "codat" or "wootiv"',
    "kind": 'say which: "email", "webhook", "alertmanager", "ntfy" or "command"',
    "from": 'say from where: "codat" or "wootiv"',
}
_KINDS: Final = {
    "string": 'must be text, in quotes: "…"',
    "path": 'must be text, in quotes: "…"',
    "int": "must be a whole number",
    "float": "must be a number",
    "finite": "must be a number",
    "bool": "must be true or false",
    "tuple": 'must be a list: ["…"]',
    "model": "must be a table",
    "dict": "must be a table",
}


def validate(model: type[Settings], written: Written) -> tuple[Settings | None, list[str]]:
    """Return the settings and all their problems.

    Wrong values are removed and the rest is validated again. So contradictions between mappings are reported together
    with a wrong value elsewhere. The settings are None if even the rest is invalid.
    """
    values = copy.deepcopy(written.values)
    problems = list(written.problems)
    # pydantic-settings reserves arguments of such names
    strays = [key for key in values if key.startswith("_")]
    problems += [_unknown(model, (key,), written) for key in strays]
    for key in strays:
        del values[key]
    settings, details = _try(model, values)
    problems += [_sentence(model, detail, written) for detail in details]
    faulty = {_value_of(detail["loc"]) for detail in details}
    if details:
        places = _take_out(values, faulty)
        settings, _ = _try(model, values)
    else:
        places = {key: list(range(len(values.get(key, ())))) for key in ("upload", "download")}
    if settings is not None:
        # In a table without its wrong values a key may seem to be missing, or to contradict a default.
        tables = {loc[0] for loc in faulty} - {"upload", "download"}
        for loc, predicate in cross_checks.found(settings, places["upload"], places["download"]):
            if loc not in faulty and loc[0] not in tables:
                problems.append(f"{_key(loc)}{_origin(loc, written)}: {predicate}")
    return settings, problems


def contradictions(settings: Settings) -> list[str]:
    """Return the contradictions between valid settings as sentences."""
    uploads, downloads = range(len(settings.uploads)), range(len(settings.downloads))
    return [f"{_key(loc)}: {predicate}" for loc, predicate in cross_checks.found(settings, uploads, downloads)]


def _try(model: type[Settings], values: dict[str, Any]) -> tuple[Settings | None, list[ErrorDetails]]:
    try:
        return model(**values), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def _value_of(loc: Loc) -> Loc:
    """Return the place of the whole value: of the list, if one of its members is wrong."""
    return loc[:3] if loc[0] in ("upload", "download") else loc[:2]


def _take_out(values: dict[str, Any], faulty: Iterable[Loc]) -> dict[str, list[int]]:
    """Remove wrong values, and a whole mapping if its folder or remote is wrong.

    Returns the original numbers of the remaining mappings.
    """
    broken: dict[str, set[int]] = {"upload": set(), "download": set()}
    for loc in faulty:
        match loc:
            case (str(key), int(at), "name"):
                values[key][at]["name"] = f"{key}[{at}]"
            case (str(key), int(at)) | (str(key), int(at), "folder" | "to" | "from"):
                broken[key].add(at)
            case (str(key), int(at), str(field)):
                values[key][at].pop(field, None)
            case (str(key), str(field)):
                values[key].pop(field, None)
            case (str(key),):
                values.pop(key, None)
    places = {}
    for key, gone in broken.items():
        places[key] = [at for at in range(len(values.get(key, ()))) if at not in gone]
        if key in values:
            values[key] = [values[key][at] for at in places[key]]
    return places


def _sentence(model: type[BaseModel], detail: ErrorDetails, written: Written) -> str:
    loc = detail["loc"]
    if detail["type"] == "extra_forbidden":
        return _unknown(model, loc, written)
    key = _key(loc)
    if detail["type"] == "missing":
        return f"{key}: is missing; {_MISSING.get(str(loc[-1]), 'write it')}"
    shown = "" if _QUIET & set(loc) else _shown(detail["input"])
    return f"{key}{shown}{_origin(loc, written)}: {_predicate(detail)}"


def _predicate(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "value_error":
            return str(context["error"])
        case "literal_error":
            return "must be " + str(context["expected"]).replace("'", '"')
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}"
        case "tuple_type" if detail["loc"] in (("upload",), ("download",), ("alerts", "to")):
            return f"must be written with two brackets: [[{_key(detail['loc'])}]]"
        case kind:
            return _KINDS.get(kind.split("_")[0], "is not a valid value for this key")


def _unknown(model: type[BaseModel], loc: Loc, written: Written) -> str:
    table, wrong = loc[:-1], str(loc[-1])
    known = _keys(_model_at(model, table))
    cure = "remove it"
    if near := get_close_matches(wrong, known, n=1, cutoff=0.6):
        cure = f'did you mean "{near[0]}"?'
    elif table and wrong in _keys(model):
        cure = "it belongs at the top of the file, before the first [section]"
    elif homes := [f"[{name}]" for name in _SECTIONS if wrong in _keys(_model_at(model, (name,)))]:
        cure = f"it belongs under {' or '.join(homes)}"
    return f"{_key(loc)}{_origin(loc, written)}: unknown key; {cure}"


def _keys(model: type[BaseModel] | None) -> list[str]:
    fields = model.model_fields if model else {}
    return [field.alias or name for name, field in fields.items()]


def _model_at(model: type[BaseModel], loc: Loc) -> type[BaseModel] | None:
    for part in loc:
        if isinstance(part, int):
            continue
        annotation = next((f.annotation for n, f in model.model_fields.items() if part == (f.alias or n)), None)
        found = [kind for kind in (annotation, *get_args(annotation)) if _is_model(kind)]
        if not found:
            return None
        model = found[0]
    return model


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _key(loc: Loc) -> str:
    """Return a place in readable notation: `upload[2].folder`."""
    return "".join(_parts(loc)).removeprefix(".")


def _parts(loc: Loc) -> Iterator[str]:
    for part in loc:
        yield f"[{part}]" if isinstance(part, int) else f".{escaped(part)}"


def _origin(loc: Loc, written: Written) -> str:
    for there, variable in written.variables.items():
        if there[: len(loc)] == loc or loc[: len(there)] == there:
            return f" (from ${escaped(variable)})"
    return ""


def _shown(value: object) -> str:
    if not isinstance(value, str | int | float):
        return ""
    text = escaped(json.dumps(value, ensure_ascii=False))
    return f" = {text if len(text) <= 80 else text[:79] + '…'}"
