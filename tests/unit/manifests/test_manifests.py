"""The manifests match the code, the schemas of old and new Kubernetes versions, and what the documents promise."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import click
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from slicebw import __version__
from slicebw.api import kinds
from slicebw.cli import cli
from tests.unit.api import crd
from tests.unit.manifests.rendered import (
    KUSTOMIZATIONS,
    MANIFESTS,
    ROOT,
    SAMPLES,
    Object,
    container,
    environment,
    objects,
    one,
    pod,
)

IMAGE: Final = f"slicebw.io/slicebw:{__version__}"
OLDEST: Final = "1.25.0"
VERSIONS: Final = (OLDEST, "1.30.0", kubernetes_validate.latest_version())
"""The oldest there are schemas of (tests/api has an older server); the first with admission policies; the newest."""
SINCE: Final = {"ValidatingAdmissionPolicy": "1.30.0", "ValidatingAdmissionPolicyBinding": "1.30.0"}

AGENT, CONTROLLER = ("DaemonSet", "slicebw-agent"), ("Deployment", "slicebw-controller")
WORKLOADS: Final = [
    pytest.param(folder, kind, name, id=f"{folder}-{name}")
    for folder in KUSTOMIZATIONS
    for kind, name in (AGENT, CONTROLLER)
    if any((obj["kind"], obj["metadata"]["name"]) == (kind, name) for obj in objects(folder))
]


# --- schemas ---


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("place", [*KUSTOMIZATIONS, *SAMPLES])
def test_everything_is_as_kubernetes_schemas_want_it(place: str, version: str) -> None:
    for obj in objects(place):
        if obj["apiVersion"] == kinds.API_VERSION:
            (kind,) = (kind for kind in kinds.ALL if kind.name == obj["kind"])
            schema = crd.schema(kind.plural)
            assert crd.Server().errors(schema, crd.with_defaults(schema, obj)) == []
        elif _newer(SINCE.get(obj["kind"], OLDEST), version):
            with pytest.raises(kubernetes_validate.SchemaNotFoundError):
                kubernetes_validate.validate(obj, version, strict=True)
        else:
            assert kubernetes_validate.validate(obj, version, strict=True) == ".".join(version.split(".")[:2])


def test_the_schemas_know_a_wrong_field_from_a_right_one() -> None:
    agent = one(*AGENT)
    pod(agent)["hostNetwrok"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="hostNetwrok"):
        kubernetes_validate.validate(agent, VERSIONS[-1], strict=True)


def _newer(version: str, than: str) -> bool:
    return [int(part) for part in version.split(".")] > [int(part) for part in than.split(".")]


# --- one image, in one place ---


@pytest.mark.parametrize(("folder", "kind", "name"), WORKLOADS)
def test_the_image_is_this_version_s(folder: str, kind: str, name: str) -> None:
    found = container(one(kind, name, folder))
    assert (found["image"], found["imagePullPolicy"]) == (IMAGE, "IfNotPresent")


def test_the_image_is_named_in_one_file() -> None:
    name, _, _ = IMAGE.partition(":")
    naming = [path for path in MANIFESTS.rglob("*.yaml") if name in path.read_text()]
    assert naming == [MANIFESTS / "base" / "kustomization.yaml"]


def test_every_file_is_used() -> None:
    used = set()
    for folder in KUSTOMIZATIONS:
        made = yaml.safe_load((ROOT / folder / "kustomization.yaml").read_text())
        used |= {ROOT / folder / "kustomization.yaml"}
        used |= {ROOT / folder / file for key in ("resources", "patchesStrategicMerge") for file in made.get(key, ())}
    used |= {ROOT / sample for sample in SAMPLES}
    assert used >= set(MANIFESTS.rglob("*.yaml"))


# --- the command line ---


@pytest.mark.parametrize(("folder", "kind", "name"), WORKLOADS)
def test_what_is_asked_of_the_command_line_is_there(folder: str, kind: str, name: str) -> None:
    workload = one(kind, name, folder)
    command = _command(container(workload)["args"])
    known = {variable for option in command.params for variable in _variables(option)}
    asked = set(environment(workload))
    if command.name == "cleanup":  # it keeps the agent's environment, and does not need its node
        asked -= {"SLICEBW_NODE"}
    assert asked <= known
    values = {variable: value for variable, value in environment(workload).items() if not value.startswith("{")}
    for option in command.params:
        for variable in _variables(option):
            if variable in values:
                option.type.convert(values[variable], option, click.Context(command))  # raises if the value is invalid


def _command(arguments: list[str]) -> click.Command:
    """Return the command that the arguments run. Checks that it has the given options."""
    found: click.Command = cli
    for index, word in enumerate(arguments):
        if not isinstance(found, click.Group):
            flags = {flag for option in found.params for flag in option.opts}
            assert set(arguments[index:]) <= flags
            break
        child = found.get_command(click.Context(found), word)
        assert child is not None, f"no such command: {word}"
        found = child
    return found


def _variables(option: click.Parameter) -> list[str]:
    given = option.envvar or ()
    return [given] if isinstance(given, str) else list(given)


@pytest.mark.parametrize(("folder", "kind", "name"), WORKLOADS)
def test_probes_ask_where_answers_are_given(folder: str, kind: str, name: str) -> None:
    workload = one(kind, name, folder)
    variables = environment(workload)
    (port,) = container(workload)["ports"]
    assert str(port["containerPort"]) == variables["SLICEBW_LIVENESS_PORT"]
    paths = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    for probe, path in paths.items():
        asked = container(workload)[probe]["httpGet"]
        assert (asked["path"], asked["port"]) == (path, port["name"])
        # Without a host the kubelet probes the pod's own address.
        where = asked.get("host", "{status.podIP}")
        assert variables["SLICEBW_LIVENESS_ADDRESS"] in {where, "0.0.0.0"}  # noqa: S104 - all of them


def test_on_the_node_s_network_nobody_but_the_node_is_answered() -> None:
    assert environment(one(*AGENT))["SLICEBW_LIVENESS_ADDRESS"] == "127.0.0.1"


# --- what they may ---


def test_an_agent_has_net_admin_its_ledger_and_nothing_else() -> None:
    agent = one(*AGENT)
    assert container(agent)["securityContext"] == {
        "runAsUser": 0,
        "runAsGroup": 0,
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    state = {"path": "/var/lib/slicebw", "type": "DirectoryOrCreate"}
    assert pod(agent)["volumes"] == [{"name": "state", "hostPath": state}]
    assert container(agent)["volumeMounts"] == [{"name": "state", "mountPath": state["path"]}]
    assert environment(agent)["SLICEBW_STATE_DIR"] == state["path"]
    assert pod(agent)["hostNetwork"] is True
    assert "hostPID" not in pod(agent)
    assert "hostIPC" not in pod(agent)


def test_an_agent_is_everywhere_and_upgraded_a_few_at_a_time() -> None:
    agent = one(*AGENT)
    assert pod(agent)["tolerations"] == [{"operator": "Exists"}]
    assert pod(agent)["priorityClassName"] == "system-node-critical"
    assert pod(agent)["dnsPolicy"] == "Default"
    assert environment(agent)["SLICEBW_NODE"] == "{spec.nodeName}"
    assert agent["spec"]["updateStrategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}}


def test_the_controller_is_as_pod_security_s_restricted_wants_it() -> None:
    controller = pod(one(*CONTROLLER))
    for key in ("hostNetwork", "hostPID", "hostIPC", "volumes"):
        assert key not in controller
    assert controller["securityContext"]["runAsNonRoot"] is True
    assert controller["securityContext"]["runAsUser"] > 0
    assert controller["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(one(*CONTROLLER))["securityContext"] == {
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert one(*CONTROLLER)["spec"]["replicas"] == 2


@pytest.mark.parametrize(("kind", "name"), [AGENT, CONTROLLER])
def test_resources_are_asked_for_and_memory_is_bounded(kind: str, name: str) -> None:
    asked = container(one(kind, name))["resources"]
    assert set(asked["requests"]) == {"cpu", "memory"}
    assert set(asked["limits"]) == {"memory"}


def test_the_namespace_lets_agents_in() -> None:
    labels = one("Namespace", "slicebw-system")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "privileged"
    for obj in objects("manifests/base"):
        assert obj["metadata"].get("namespace", "slicebw-system") == "slicebw-system"


# --- roles ---

ROLES: Final = [obj for obj in objects("manifests/base") if obj["kind"] == "ClusterRole"]
READ: Final = {"get", "list", "watch"}


def _rules() -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Give (role, resource with its group, rule) for all that the roles allow."""
    for role in ROLES:
        for rule in role["rules"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    yield role["metadata"]["name"], f"{resource}.{group}".rstrip("."), rule


def test_nobody_is_given_everything_nor_secrets_nor_the_means_to_take_more() -> None:
    for role, resource, rule in _rules():
        given = {*rule["verbs"], *rule["resources"], *rule["apiGroups"]}
        assert not given & {"*", "secrets", "impersonate", "escalate", "bind"}, (role, rule)
        assert resource.partition(".")[0] not in {"serviceaccounts", "roles", "rolebindings", "pods/exec"}, (role, rule)


def test_limits_are_written_by_operators_only() -> None:
    writers = {
        role
        for role, resource, rule in _rules()
        if resource == "slicebandwidths.slicebw.io" and {*rule["verbs"]} - READ
    }
    assert writers == {"slicebw-operator"}


def test_view_gets_to_read_slices_and_nothing_is_given_to_edit_or_admin() -> None:
    aggregated = {
        role["metadata"]["name"]: [label for label in role["metadata"].get("labels", {}) if "/aggregate-to-" in label]
        for role in ROLES
    }
    assert aggregated.pop("slicebw-view") == ["rbac.authorization.k8s.io/aggregate-to-view"]
    assert not any(aggregated.values())
    given = {resource: {*rule["verbs"]} for role, resource, rule in _rules() if role == "slicebw-view"}
    assert given == {"slicebandwidths.slicebw.io": READ, "bandwidthusages.slicebw.io": READ}


def test_each_rule_has_its_reason_above_it() -> None:
    for path in sorted(MANIFESTS.glob("base/*rbac.yaml")):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if line.startswith("  - ") and "apiGroups:" in line:
                assert lines[number - 1].startswith("  # "), f"{path.name}:{number + 1}"


# --- overlays ---


def test_uninstall_is_the_base_with_pods_that_clean_up() -> None:
    installed, leaving = objects("manifests/base"), objects("manifests/uninstall")
    agent = next(obj for obj in installed if obj["kind"] == "DaemonSet")
    container(agent)["args"] = ["node", "cleanup", "--stay"]
    agent["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"] = "100%"
    assert _sorted(leaving) == _sorted(installed)


def test_monitor_is_the_base_with_a_mode() -> None:
    added = [obj for obj in objects("manifests/overlays/monitor") if obj not in objects("manifests/base")]
    (mode,) = added
    assert (mode["kind"], mode["metadata"], mode["spec"]) == (
        "NodeBandwidth",
        {"name": kinds.DEFAULT_NODE_BANDWIDTH},
        {"mode": "Monitor"},
    )


def test_k3s_is_the_base_with_one_controller() -> None:
    expected = objects("manifests/base")
    next(obj for obj in expected if obj["kind"] == "Deployment")["spec"]["replicas"] = 1
    assert _sorted(objects("manifests/overlays/k3s")) == _sorted(expected)


def test_monitoring_is_the_base_with_metrics_for_everybody_who_reaches_them() -> None:
    expected = objects("manifests/base")
    for obj in expected:
        if obj["kind"] in {"DaemonSet", "Deployment"}:
            port = environment(obj)["SLICEBW_LIVENESS_PORT"]
            obj["spec"]["template"]["metadata"]["annotations"] = {
                "prometheus.io/scrape": "true",
                "prometheus.io/port": port,
            }
        if obj["kind"] == "DaemonSet":
            (address,) = (one for one in container(obj)["env"] if one["name"] == "SLICEBW_LIVENESS_ADDRESS")
            address["value"] = "0.0.0.0"  # noqa: S104 - the overlay sets it
    assert _sorted(objects("manifests/overlays/monitoring")) == _sorted(expected)


def test_controllers_talk_to_prometheus_and_the_api_server_only() -> None:
    policy = one("NetworkPolicy", "slicebw-controller")["spec"]
    assert (
        policy["podSelector"]["matchLabels"].items()
        <= one(*CONTROLLER)["spec"]["template"]["metadata"]["labels"].items()
    )
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    (ingress,) = policy["ingress"]
    (port,) = container(one(*CONTROLLER))["ports"]
    assert [allowed["port"] for allowed in ingress["ports"]] == [port["containerPort"]]
    assert [allowed["port"] for allowed in policy["egress"][0]["ports"]] == [443, 6443]


def _sorted(found: list[Object]) -> list[str]:
    """Return objects as texts to compare. Variables are sorted, because kustomize puts a patched one first."""
    for obj in found:
        if obj["kind"] in {"DaemonSet", "Deployment"}:
            container(obj)["env"].sort(key=lambda variable: variable["name"])
    return sorted(json.dumps(obj, sort_keys=True) for obj in found)
