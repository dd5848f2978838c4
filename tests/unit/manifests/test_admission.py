"""The expressions of the admission policies, evaluated for requests that an agent may and may not make.

They are CEL, which an API server evaluates from 1.30 on. Here cel-cpp does, with the same variables.
"""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import pytest
from cel_expr_python import cel  # type: ignore[import-untyped]

from slicebw.api import bandwidth_usage, event, kinds, node_bandwidth
from tests.support.reports import capped_event, node_report, usage_report
from tests.unit.api import crd
from tests.unit.manifests.rendered import Object, objects, one

FOLDER: Final = "manifests/admission"
POLICIES: Final = {
    obj["metadata"]["name"]: obj for obj in objects(FOLDER) if obj["kind"] == "ValidatingAdmissionPolicy"
}
AGENT: Final = "system:serviceaccount:slicebw-system:slicebw-agent"
NODE_CLAIM: Final = "authentication.kubernetes.io/node-name"
NODE, OTHER = "node-a", "node-b"
LONG: Final = "n" * 60 + ".example.org"
AT: Final = 1_700_000_000


def decide(
    policy: str, old: Object | None, new: Object | None, extra: Mapping[str, list[str]] | None = None
) -> list[str]:
    """Return the messages that refuse an agent's request; none if it is admitted."""
    user: Object = {"username": AGENT, "groups": ["system:serviceaccounts"]}
    if extra is not None:
        user["extra"] = dict(extra)
    spec = POLICIES[policy]["spec"]
    known: Object = {"request": {"userInfo": user}, "object": as_sent(new), "oldObject": as_sent(old), "variables": {}}
    for variable in spec["variables"]:
        known["variables"][variable["name"]] = evaluate(variable["expression"], known)
    refusals = []
    for rule in spec["validations"]:
        answer = evaluate(rule["expression"], known)
        if answer is not True:
            assert answer is False, f"{rule['expression']}: {answer}"
            worded = rule.get("messageExpression")
            refusals.append(rule["message"] if worded is None else evaluate(worded, known))
    return refusals


def as_sent(obj: Object | None) -> Object | None:
    """Return plain JSON, as the server gets it."""
    sent: Object | None = json.loads(json.dumps(obj))
    return sent


def evaluate(expression: str, known: Object) -> Any:
    """Evaluate an expression for a request. Returns a plain value, or the text of an error."""
    return _plain(compiled(expression).eval(data=known))


@cache
def compiled(expression: str) -> Any:
    """Compile an expression. Raises an exception if it is invalid."""
    names = ("request", "object", "oldObject", "variables")
    return cel.NewEnv(variables=dict.fromkeys(names, cel.Type.DYN)).compile(expression)


def _plain(found: Any) -> Any:
    value = found.value() if hasattr(found, "value") else found
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in value.items()}
    return value


def of(node: str) -> dict[str, list[str]]:
    """Return the claims about the node in the token of an agent's pod."""
    return {NODE_CLAIM: [node], "authentication.kubernetes.io/pod-name": ["slicebw-agent-x"]}


def usage(node: str = NODE, **fields: object) -> Object:
    """Make a usage as the agent writes it."""
    return {**bandwidth_usage.to_object(usage_report("princeton"), node, "uid", AT), **fields}


def with_metadata(obj: Object, **metadata: object) -> Object:
    return {**obj, "metadata": {**obj["metadata"], **metadata}}


def owned(obj: Object, *owners: Object) -> Object:
    return with_metadata(obj, ownerReferences=list(owners))


def node_object(node: str = NODE, **fields: object) -> Object:
    return {**node_bandwidth.node_object(node), **fields}


def emitted(node: str = NODE, **fields: object) -> Object:
    return {**event.to_object(capped_event("princeton"), node)[1], **fields}


OWNER: Final = {"apiVersion": "v1", "kind": "Node", "name": NODE, "uid": "uid"}
STATUS: Final = node_bandwidth.status_object(NODE, node_report(), AT)
USAGES, NODES, EVENTS = "slicebw-agent-usages", "slicebw-agent-nodebandwidths", "slicebw-agent-events"
ADMITTED: Final = {
    "a usage is made": (USAGES, None, usage()),
    "a usage moves on": (USAGES, usage(), usage(reportedAt="2026-01-01T00:00:00Z")),
    "a usage is over": (USAGES, usage(), None),
    "a usage without an owner": (USAGES, None, bandwidth_usage.to_object(usage_report("princeton"), NODE, None, AT)),
    "a usage owned by its node": (USAGES, None, owned(usage(), OWNER)),
    "the node's object is made": (NODES, None, node_object()),
    "the status of one without a spec": (NODES, node_object(), STATUS),
    "the status of one with a spec": (NODES, node_object(spec={"cap": "1G"}), {**STATUS, "spec": {"cap": "1G"}}),
    "a slice's event": (EVENTS, None, emitted()),
    "the node's event": (EVENTS, None, emitted(involvedObject={**OWNER})),
}
REFUSED: Final = {
    "a usage of another node": (USAGES, None, usage(OTHER), "usages of its own node"),
    "a usage taken from another node": (USAGES, usage(OTHER), usage(), "usages of its own node"),
    "a usage given to another node": (USAGES, usage(), usage(OTHER), "usages of its own node"),
    "another node's usage deleted": (USAGES, usage(OTHER), None, "usages of its own node"),
    "a usage of no node": (USAGES, None, {**usage(), "nodeName": ""}, "usages of its own node"),
    "a usage that does not say": (
        USAGES,
        None,
        {key: value for key, value in usage().items() if key != "nodeName"},
        "usages of its own node",
    ),
    "a usage that another node would take for its own": (
        USAGES,
        None,
        with_metadata(usage(), labels={kinds.LABEL_NODE: OTHER}),
        "usages of its own node",
    ),
    "a usage that nobody finds again": (USAGES, None, with_metadata(usage(), labels={}), "usages of its own node"),
    "a usage in the place of another node's": (
        USAGES,
        None,
        with_metadata(usage(), name=usage(OTHER)["metadata"]["name"]),
        "named after its slice and its node",
    ),
    "a usage of a dotted slice in the place of another node's": (
        USAGES,
        None,
        with_metadata(usage(sliceName="a.b"), name=usage(OTHER)["metadata"]["name"]),
        "named after its slice and its node",
    ),
    "a usage of a long slice in the place of another node's": (
        USAGES,
        None,
        with_metadata(usage(sliceName="s" * 253), name=usage(OTHER)["metadata"]["name"]),
        "named after its slice and its node",
    ),
    "a usage of no slice": (
        USAGES,
        None,
        {key: value for key, value in usage().items() if key != "sliceName"},
        "named after its slice and its node",
    ),
    "a usage owned by another node": (USAGES, None, owned(usage(), {**OWNER, "name": OTHER}), "owned by its Node"),
    "a usage owned by a pod": (USAGES, None, owned(usage(), {**OWNER, "kind": "Pod"}), "owned by its Node"),
    "a usage with a second owner": (
        USAGES,
        None,
        owned(usage(), OWNER, {**OWNER, "name": OTHER}),
        "owned by its Node",
    ),
    "another node's object": (NODES, None, node_object(OTHER), "NodeBandwidth of its own node"),
    "everybody's object": (NODES, None, node_object("default"), "NodeBandwidth of its own node"),
    "another node's status": (NODES, node_object(OTHER), node_object(OTHER, status={}), "NodeBandwidth of its own"),
    "another node's object deleted": (NODES, node_object(OTHER), None, "NodeBandwidth of its own node"),
    "a cap of its own making": (NODES, None, node_object(spec={"cap": "10G"}), "how its node is treated"),
    "a cap added": (NODES, node_object(), node_object(spec={"cap": "10G"}), "how its node is treated"),
    "a cap raised": (NODES, node_object(spec={"cap": "1G"}), node_object(spec={"cap": "10G"}), "how its node"),
    "a cap dropped": (NODES, node_object(spec={"cap": "1G"}), node_object(), "how its node is treated"),
    "another node's event": (EVENTS, None, emitted(OTHER), "Events of its own node"),
    "an event from nowhere": (EVENTS, None, emitted(source={"component": "x"}), "Events of its own node"),
    "an event without a source": (
        EVENTS,
        None,
        {k: v for k, v in emitted().items() if k != "source"},
        "Events of its own",
    ),
    "an event about another node": (
        EVENTS,
        None,
        emitted(involvedObject={**OWNER, "name": OTHER}),
        "Events of its own",
    ),
    "an event about a pod": (EVENTS, None, emitted(involvedObject={**OWNER, "kind": "Pod"}), "Events of its own node"),
    "an event about nothing": (EVENTS, None, emitted(involvedObject={}), "Events of its own node"),
    "another node's event changed": (EVENTS, emitted(OTHER), emitted(), "Events of its own node"),
}


@pytest.mark.parametrize("name", ADMITTED)
def test_what_an_agent_does_is_admitted(name: str) -> None:
    assert decide(*ADMITTED[name], of(NODE)) == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_its_own_node_s_is_refused(name: str) -> None:
    policy, old, new, says = REFUSED[name]
    assert says in " ".join(decide(policy, old, new, of(NODE)))


@pytest.mark.parametrize("name", ADMITTED)
@pytest.mark.parametrize("extra", [None, {}, {"other": ["x"]}, {NODE_CLAIM: []}, {NODE_CLAIM: [NODE, OTHER]}])
def test_a_token_that_names_no_node_is_worth_nothing(name: str, extra: Mapping[str, list[str]] | None) -> None:
    assert "names no node" in decide(*ADMITTED[name], extra)[0]


@pytest.mark.parametrize("name", ADMITTED)
def test_no_agent_of_another_node_may_do_it(name: str) -> None:
    assert decide(*ADMITTED[name], of(OTHER)) != []


def test_a_node_with_a_name_that_is_no_label_is_known_by_the_field() -> None:
    assert kinds.label_value(LONG) != LONG
    assert decide(USAGES, None, usage(LONG), of(LONG)) == []
    assert decide(USAGES, None, usage("x" + LONG), of(LONG)) != []


@pytest.mark.parametrize("length", [1, 63, 226, 227, 228, 229, 245, 246, 247, 253])
@pytest.mark.parametrize("middle", ["s", "."])
def test_whatever_a_slice_is_called_its_usage_has_a_name_that_is_admitted(length: int, middle: str) -> None:
    called = "s" * (length // 2) + (middle if length > 2 else "s") + "s" * (length - length // 2 - 1)
    assert len(called) == length
    renamed = with_metadata(usage(sliceName=called), name=bandwidth_usage.name(called, NODE))
    assert decide(USAGES, None, renamed, of(NODE)) == []


# --- what the policies apply to ---


def test_every_resource_an_agent_may_write_has_a_policy() -> None:
    written = {
        f"{resource}.{group}".rstrip(".")
        for rule in one("ClusterRole", "slicebw-agent")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        if {*rule["verbs"]} - {"get", "list", "watch"}
    }
    matched = {
        f"{resource}.{group}".rstrip(".")
        for policy in POLICIES.values()
        for rule in policy["spec"]["matchConstraints"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert matched == written


def test_every_policy_is_about_agents_alone_is_bound_and_denies() -> None:
    bindings = {obj["spec"]["policyName"]: obj for obj in objects(FOLDER) if obj not in POLICIES.values()}
    assert bindings.keys() == POLICIES.keys()
    account = one("ServiceAccount", "slicebw-agent")["metadata"]
    for name, policy in POLICIES.items():
        assert bindings[name]["spec"]["validationActions"] == ["Deny"]
        assert policy["spec"]["failurePolicy"] == "Fail"
        (rule,) = policy["spec"]["matchConstraints"]["resourceRules"]
        assert rule["operations"] == ["CREATE", "UPDATE", "DELETE"]
        (condition,) = policy["spec"]["matchConditions"]
        for user in (AGENT, "system:serviceaccount:slicebw-system:slicebw-controller", "admin"):
            applies = evaluate(condition["expression"], {"request": {"userInfo": {"username": user}}})
            assert applies is (user == f"system:serviceaccount:{account['namespace']}:{account['name']}")


def test_a_node_s_object_without_a_spec_gets_none_from_the_server() -> None:
    assert "default" not in crd.schema("nodebandwidths", "spec")
    assert "spec" not in node_object()
