"""Parses label selectors (meta/v1 LabelSelector), with the checks of the API server."""

import re
from typing import Final

from slicebw.api.fields import Fields
from slicebw.api.quantity import QuantityError, shown
from slicebw.core.desired import Requirement, Selector, SelectorOperator

_NAME: Final = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_PREFIX: Final = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*"
_KEY: Final = re.compile(rf"(?:(?={_PREFIX}/)[^/]{{1,253}}/)?{_NAME}")
_VALUE: Final = re.compile(rf"(?:{_NAME})?")
_MAX_KEY_LENGTH: Final = 253 + 1 + 63
_MAX_VALUE_LENGTH: Final = 63

_LISTING: Final = (SelectorOperator.IN, SelectorOperator.NOT_IN)


def parse(value: object, path: str, errors: list[str], *, strict: bool) -> Selector:
    """Parse the selector at ``path``, and add what is wrong to ``errors``. An absent or empty one selects every pod.

    ``strict``: unknown fields are errors.
    """
    fields = Fields(value, path, errors)
    if strict:
        fields.refuse_unknown(("matchLabels", "matchExpressions"))
    requirements = _match_labels(fields.inner("matchLabels"))
    for item_path, item in fields.items("matchExpressions"):
        before, expression = len(errors), Fields(item, item_path, errors)
        if len(errors) > before:  # not an object: one error is enough
            continue
        requirement = _expression(expression, strict=strict)
        if requirement is not None:
            requirements.append(requirement)
    return Selector(tuple(requirements))


def _match_labels(fields: Fields) -> list[Requirement]:
    requirements = []
    # In a fixed order, so that equal selectors are equal values; by text, because in YAML a key may be a number.
    for key in sorted(fields.names(), key=str):
        try:
            name = _key(key)
            requirements.append(Requirement(name, SelectorOperator.IN, (_value(fields.raw(name)),)))
        except QuantityError as error:
            fields.fail(key if isinstance(key, str) and len(key) <= _MAX_KEY_LENGTH else "", str(error))
    return requirements


def _expression(fields: Fields, *, strict: bool) -> Requirement | None:
    if strict:
        fields.refuse_unknown(("key", "operator", "values"))
    before = len(fields.errors)
    key = fields.required("key", _key)
    operator = fields.required("operator", _operator)
    values = []
    for index, (_, item) in enumerate(fields.items("values")):
        try:
            values.append(_value(item))
        except QuantityError as error:
            fields.fail(f"values[{index}]", str(error))
    if operator in _LISTING and fields.raw("values") in (None, [], ()):
        fields.fail("values", f"{operator} needs at least one value")
    if operator is not None and operator not in _LISTING and values:
        fields.fail("values", f"{operator} takes no values")
    if key is None or operator is None or len(fields.errors) > before:
        return None
    return Requirement(key, operator, tuple(values))


def _key(value: object) -> str:
    if isinstance(value, str) and len(value) <= _MAX_KEY_LENGTH and _KEY.fullmatch(value):
        return value
    raise QuantityError(f"{shown(value)} is not a label key: use letters, digits, -, _ and . (app, example.org/role)")


def _value(value: object) -> str:
    if isinstance(value, str) and len(value) <= _MAX_VALUE_LENGTH and _VALUE.fullmatch(value):
        return value
    raise QuantityError(f"{shown(value)} is not a label value: use a string of up to 63 letters, digits, -, _ and .")


def _operator(value: object) -> SelectorOperator:
    for operator in SelectorOperator:
        if value == operator.value:
            return operator
    raise QuantityError(f"{shown(value)} is not an operator: use {', '.join(SelectorOperator)}")
