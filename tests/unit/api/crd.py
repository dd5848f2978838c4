"""The CRDs as an API server reads them: as much of structural schemas and CEL as the files in crds/ use.

The CEL rules are run by cel-expr-python, which is cel-cpp; ``find`` is Kubernetes' own function, added here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml
from cel_expr_python import cel  # type: ignore[import-untyped]

ROOT: Final = Path(__file__).parents[3]
UNDERSTOOD: Final = {
    "type", "description", "properties", "additionalProperties", "items", "required", "default", "enum", "pattern",
    "minimum", "maximum", "minLength", "maxLength", "maxItems", "format",
    "x-kubernetes-int-or-string", "x-kubernetes-validations", "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys", "x-kubernetes-map-type",
}  # fmt: skip
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "object": (dict,), "array": (list,), "string": (str,), "integer": (int,), "boolean": (bool,)
}  # fmt: skip


def load(plural: str) -> dict[str, Any]:
    """The CustomResourceDefinition in ``crds/<plural>.yaml``."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "crds" / f"{plural}.yaml").read_text())
    return loaded


def version(plural: str) -> dict[str, Any]:
    """Its only version."""
    (only,) = load(plural)["spec"]["versions"]
    loaded: dict[str, Any] = only
    return loaded


def schema(plural: str, *path: str) -> dict[str, Any]:
    """The schema of the object, or of the field at ``path``."""
    found: dict[str, Any] = version(plural)["schema"]["openAPIV3Schema"]
    for name in path:
        found = found["properties"][name]
    return found


def walk(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every schema in a schema, with its path."""
    yield path, node
    for name, inner in node.get("properties", {}).items():
        yield from walk(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from walk(node[key], f"{path}[]")


def with_defaults(node: Mapping[str, Any], value: Any) -> Any:
    """A value as the server stores it: defaults filled in, nulls gone."""
    if not isinstance(value, dict):
        return value
    filled = {name: inner for name, inner in value.items() if inner is not None}
    for name, inner in node.get("properties", {}).items():
        if name not in filled and "default" in inner:
            filled[name] = inner["default"]
        if name in filled:
            filled[name] = with_defaults(inner, filled[name])
    return filled


@dataclass(frozen=True)
class Server:
    """A server that knows CEL (from Kubernetes 1.25 on), or one that does not."""

    knows_cel: bool = True

    def errors(self, node: Mapping[str, Any], value: Any, path: str = "") -> list[str]:
        """Why the value is refused; nothing if it is taken. Unknown fields, which it would prune, are named too."""
        wrong_type = _type_error(node, value)
        if wrong_type:
            return [f"{path}: {wrong_type}"]
        found = [f"{path}: {text}" for text in _value_errors(node, value)]
        if isinstance(value, dict):
            found += [f"{path}: {name} required" for name in node.get("required", []) if name not in value]
            for name, inner in value.items():
                known = node.get("properties", {}).get(name, node.get("additionalProperties"))
                if known is not None:
                    found += self.errors(known, inner, f"{path}.{name}")
                elif node.get("properties") or "additionalProperties" in node:
                    found.append(f"{path}.{name}: pruned")
        if isinstance(value, list):
            for index, inner in enumerate(value):
                found += self.errors(node["items"], inner, f"{path}[{index}]")
        if self.knows_cel and not found:
            found = [f"{path}: {text}" for text in rule_errors(node, value)]
        return found


def rule_errors(node: Mapping[str, Any], value: Any) -> list[str]:
    """The messages of the CEL rules of this very schema that the value breaks."""
    return [
        rule["message"]
        for rule in node.get("x-kubernetes-validations", [])
        if evaluate(rule["rule"], value) is not True
    ]


def evaluate(rule: str, value: Any) -> Any:
    """What a rule makes of a value: True, False, or the text of an error."""
    return compiled(rule).eval(data={"self": value}).value()


@cache
def compiled(rule: str) -> Any:
    """A rule, compiled and type-checked. Raises where it cannot be."""
    return _environment().compile(rule)


@cache
def _environment() -> Any:
    strings = [cel.Type.STRING, cel.Type.STRING]
    find = cel.Overload("string_find_string", cel.Type.STRING, strings, is_member=True, impl=_find)
    return cel.NewEnv(variables={"self": cel.Type.DYN}, functions=[cel.FunctionDecl("find", [find])])


def _find(text: str, pattern: str) -> str:
    match = re.search(pattern, text)
    return match[0] if match else ""


def _type_error(node: Mapping[str, Any], value: Any) -> str:
    wanted = _TYPES[node["type"]] if "type" in node else (int, str)
    is_bool = isinstance(value, bool)
    right = isinstance(value, wanted) and (not is_bool or bool in wanted)
    return "" if right else f"{value!r} is of the wrong type"


def _value_errors(node: Mapping[str, Any], value: Any) -> Iterator[str]:
    if "enum" in node and value not in node["enum"]:
        yield f"{value!r} is none of {node['enum']}"
    if isinstance(value, str):
        if "pattern" in node and not re.search(node["pattern"].removesuffix("$") + r"\Z", value, re.ASCII):
            yield f"{value!r} does not match"
        if not node.get("minLength", 0) <= len(value) <= node.get("maxLength", len(value)):
            yield f"{value!r} has the wrong length"
    elif isinstance(value, int) and not isinstance(value, bool):
        if not node.get("minimum", value) <= value <= node.get("maximum", value):
            yield f"{value} is out of bounds"
    elif isinstance(value, list):
        if len(value) > node.get("maxItems", len(value)):
            yield "too many items"
        if node.get("x-kubernetes-list-type") == "set" and len(set(value)) != len(value):
            yield "duplicate items"
