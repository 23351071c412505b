"""The base of every configuration record, and how a file becomes one: safe YAML or JSON in, one clear sentence on error."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from simulator.errors import InputError, UnknownName, nearest

MAX_FILE_BYTES = 16 * 2**20
"""Configuration files are small; anything larger is a mistake and is not parsed."""
MAX_YAML_BYTES = 2**19
"""YAML is parsed in Python where it is wrong, some 200 kB/s, and ours is written by hand."""
MAX_DEPTH = 64
"""Levels of nesting; the deepest real file has about ten."""


class Record(BaseModel):
    """Frozen, unknown fields refused, no silent coercion of NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


R = TypeVar("R", bound=BaseModel)


def validate(cls: type[R], data: Any, where: str) -> R:
    """`data` as a `cls`, or an InputError naming the first offending field, its value and the rule it breaks."""
    if not isinstance(data, dict):
        raise _no_mapping(data, where)
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        raise _first_error(cls, error, where) from None
    except InputError as error:  # raised by a validator of ours, which does not know the file
        error.where = error.where or where
        raise


def _no_mapping(data: Any, where: str) -> InputError:
    found = "(empty)" if data is None else type(data).__name__
    return InputError("content", found, "be a mapping of fields to values", where=where)


_PLAIN = {
    "a valid tuple": "a list",
    r"a valid dictionary( or instance of \w+)?": "a mapping of fields to values",
    "a valid string": "text",
    "a valid integer, unable to parse string as an integer|a valid integer, got a number with a fractional part|a valid integer": "a whole number",
    "a valid number, unable to parse string as a number|a valid number": "a number",
    "a valid boolean, unable to interpret input|a valid boolean": "true or false",
}
"""Pydantic's words, and those of people."""
_PLAIN_TYPES = ("str", "int", "float", "bool")
"""What pydantic appends to a field that may be text or a number: the kind it tried. No field of ours is called so."""


def _first_error(cls: type[BaseModel], error: ValidationError, where: str) -> InputError:
    # Unknown fields first: a misspelt name usually also shows up as a missing one, and the name is the useful message.
    details = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = details[0]
    path = [part for part in first["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    if path and path[-1] in _PLAIN_TYPES:
        path.pop()
    field = ".".join(str(part) for part in path) or "content"
    if first["type"] == "extra_forbidden":
        known = _fields_at(cls, list(path[:-1]))
        return UnknownName(field, str(path[-1]), known, where=where, kind="field")
    if first["type"] == "missing":
        return InputError(field, "(absent)", "be given", where=where)
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        context = first["ctx"]
        tag_field = f"{field}.{context['discriminator'].strip(chr(39))}"
        if "tag" not in context:
            return InputError(tag_field, "(absent)", "be given", where=where)
        known = [tag.strip("' ") for tag in context["expected_tags"].split(",")]
        return UnknownName(tag_field, str(context["tag"]), known, where=where, kind="kind")
    if first["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", first["ctx"]["expected"])
        rule = first["msg"].replace("Input should be", "be")
        return InputError(
            field, first.get("input"), rule, suggestion=nearest(str(first.get("input")), known), where=where
        )
    message = first["msg"]
    for jargon, plain in _PLAIN.items():
        message = re.sub(jargon, plain, message)
    for lead in ("Input should be ", "Value error, ", "Assertion failed, "):
        message = message.removeprefix(lead)
    rule = message if first["type"] == "value_error" else f"be {message}"
    return InputError(field, first.get("input"), rule, where=where)


def _fields_at(cls: type[BaseModel], path: list[Any]) -> list[str]:
    """Names of the fields that `cls` knows at `path`, following nested records and tagged unions."""
    candidates: list[type[BaseModel]] = [cls]
    for part in path:
        inner: list[type[BaseModel]] = []
        for candidate in candidates:
            if isinstance(part, str) and part in candidate.model_fields:
                inner.extend(_records_in(candidate.model_fields[part].annotation))
            elif candidate.__name__ == part or part in _tags(candidate) or isinstance(part, int):
                inner.append(candidate)
        candidates = inner or candidates
    return sorted({name for candidate in candidates for name in candidate.model_fields})


def _tags(cls: type[BaseModel]) -> tuple[Any, ...]:
    kind = cls.model_fields.get("kind")
    return tuple(getattr(kind.annotation, "__args__", ())) if kind else ()


def _records_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for arg in getattr(annotation, "__args__", ()) for found in _records_in(arg)]


class _UniqueKeys:
    """Refuses a key given twice, of which the later one would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.value != "<<":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key_node.value!r} appears twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)  # type: ignore[misc]
        return mapping


class _PlainLoader(_UniqueKeys, yaml.SafeLoader):
    """Safe YAML without aliases, with which a few lines can stand for billions of values."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, f"the alias *{alias.anchor} is not allowed; repeat what it stands for", alias.start_mark
            )
        return super().compose_node(parent, index)


if yaml.__with_libyaml__:

    class _CompiledLoader(_UniqueKeys, yaml.CSafeLoader):
        """The same rules at ten times the speed, for texts that `_is_tame` has seen."""


def _is_tame(text: str) -> bool:
    """Whether `text` parses, without aliases or deep nesting, which libyaml's recursion would not survive."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:
                return False
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
    except yaml.YAMLError:
        return False
    return True


def _yaml(text: str) -> Any:
    if yaml.__with_libyaml__ and _is_tame(text):
        return yaml.load(text, Loader=_CompiledLoader)  # noqa: S506
    return yaml.load(text, Loader=_PlainLoader)  # noqa: S506  # which also words the errors


_cached_yaml = lru_cache(maxsize=64)(_yaml)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file; InputError when it cannot be read, is too large, or holds something else."""
    where = str(path)
    is_json = path.suffix == ".json"
    most = MAX_FILE_BYTES if is_json else MAX_YAML_BYTES
    try:
        if path.stat().st_size > most:
            raise InputError("size", f"{path.stat().st_size} bytes", f"be at most {most} bytes", where=where)
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError("content", "(binary)", "be UTF-8 text", where=where) from None
    except OSError as error:
        raise InputError("file", where, f"be readable ({error.strerror or error})") from None
    try:
        # A profile is read again and again within one run; whoever gets it may change it.
        data = json.loads(text) if is_json else deepcopy(_cached_yaml(text))
    except json.JSONDecodeError as error:
        raise InputError("content", f"line {error.lineno}", f"be valid JSON ({error.msg})", where=where) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}" if mark else "text"
        problem = getattr(error, "problem", None) or getattr(error, "reason", "unreadable")
        raise InputError("content", line, f"be valid YAML ({problem})", where=where) from None
    except (
        ValueError
    ) as error:  # an integer of thousands of digits, a 13th month: the parsers let Python's own error out
        reason = str(error).split(":")[0]
        raise InputError("content", "(a value)", f"hold readable numbers and dates ({reason})", where=where) from None
    except RecursionError:
        raise _too_deep(where) from None
    if not isinstance(data, dict):
        raise _no_mapping(data, where)
    _check_depth(data, where)
    return data


def _check_depth(data: Any, where: str) -> None:
    level = [data]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise _too_deep(where)


def _too_deep(where: str) -> InputError:
    return InputError("content", "(too deep)", f"be nested at most {MAX_DEPTH} levels deep", where=where)


def read_named(cls: type[R], path: Path) -> R:
    """The file at `path` as a `cls`, whose name is that of the file where it gives none."""
    return validate(cls, {"name": path.stem} | read_mapping(path), str(path))


def read_record(cls: type[R], path: Path, section: str | None = None) -> R:
    """The file at `path` as a `cls`; of a device profile, which holds several records, its `section`."""
    data = read_mapping(path)
    if section is not None and isinstance(data.get(section), dict):
        return validate(cls, data[section], f"{path}: {section}")
    return validate(cls, data, str(path))
