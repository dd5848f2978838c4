from textwrap import dedent

import pytest

from slicebw.core.desired import NodeSpec, Pod, SliceSpec
from slicebw.folder.manifest_parser import Content, Identity, read

SLICE = """
    apiVersion: slicebw.io/v1alpha1
    kind: SliceBandwidth
    metadata: {name: codeen, namespace: princeton}
    spec:
      standard: {maxRate: 10M}
"""


def parsed(text: str) -> Content:
    return read(dedent(text).encode())


def the_slice(text: str) -> SliceSpec:
    content = parsed(text)
    assert content.problems == []
    (value,) = [manifest.value for manifest in content.manifests.values()]
    assert isinstance(value, SliceSpec)
    return value


def problem_of(text: str) -> str:
    content = parsed(text)
    assert len(content.problems) == 1, content
    return f"{content.problems[0].line}: {content.problems[0].text}"


def test_the_three_kinds_are_read_from_documents_and_lists() -> None:
    content = parsed("""
        apiVersion: v1
        kind: List
        items:
        - apiVersion: slicebw.io/v1alpha1
          kind: SliceBandwidth
          metadata: {name: codeen, namespace: princeton}
        - apiVersion: v1
          kind: Pod
          metadata: {name: pod, namespace: princeton}
          spec: {nodeName: node-a}
          status: {podIPs: [{ip: 10.0.0.1}]}
        ---
        apiVersion: slicebw.io/v1alpha1
        kind: NodeBandwidth
        metadata: {name: default}
        spec: {cap: 50M}
    """)
    assert content.problems == []
    found = {str(identity): manifest for identity, manifest in content.manifests.items()}
    assert list(found) == ["SliceBandwidth princeton/codeen", "Pod princeton/pod", "NodeBandwidth default"]
    assert [manifest.line for manifest in found.values()] == [5, 8, 14]
    pod, node = found["Pod princeton/pod"], found["NodeBandwidth default"]
    assert isinstance(pod.value, Pod)
    assert (pod.node_name, pod.value.addresses) == ("node-a", ("10.0.0.1",))
    assert isinstance(node.value, NodeSpec)
    assert node.value.cap_bps == 50_000_000


def test_items_of_a_list_of_one_kind_inherit_it_as_the_api_server_writes_them() -> None:
    content = parsed("""
        apiVersion: v1
        kind: PodList
        items:
        - metadata: {name: pod, namespace: princeton}
    """)
    assert list(content.manifests) == [Identity("Pod", "princeton", "pod")]


def test_other_kinds_are_counted_and_ignored() -> None:
    content = parsed("""
        apiVersion: v1
        kind: List
        items:
        - {apiVersion: v1, kind: Namespace, metadata: {name: princeton}}
        - {apiVersion: apps/v1, kind: Deployment, metadata: {name: x}}
        - {apiVersion: slicebw.io/v1alpha1, kind: BandwidthUsage, metadata: {name: x}}
    """)
    assert content == Content(ignored={"Namespace": 1, "Deployment": 1, "BandwidthUsage": 1})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("just a text", '1: "just a text" must be an object'),
        ("{kind: SliceBandwidth}", "1: apiVersion is missing: there are slicebw.io/v1alpha1 SliceBandwidth,"),
        ("\napiVersion: v1", "2: kind is missing"),
        ("{apiVersion: slicebw.io/v1alpha1, kind: SliceBandwith}", '"SliceBandwith" is unknown in slicebw.io; did you'),
        ("{apiVersion: slicebw.io/v1alpha1, kind: Gadget}", "there are SliceBandwidth, BandwidthUsage, NodeBandwidth"),
        ("{apiVersion: slicebw.io/v2, kind: SliceBandwidth}", "SliceBandwidth: apiVersion is"),
        ("{apiVersion: apps/v1, kind: Pod}", 'Pod: apiVersion is "apps/v1", which must be v1'),
        ("{apiVersion: v1, kind: Pod}", "Pod: metadata is missing"),
        ("{apiVersion: v1, kind: Pod, metadata: {}}", "Pod: metadata.name: must be given"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: 7}}", "Pod: metadata.name: 7 is not a string"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: ../../etc/passwd}}", "Pod: metadata.name:"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: /}}", "Pod: metadata.namespace:"),
        ("{apiVersion: v1, kind: List, items: 7}", "1: List: items: 7 must be a list"),
        ("a: [", "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_named_with_what_is_allowed(text: str, words: str) -> None:
    assert words in problem_of(text)


def test_an_object_that_is_twice_in_a_file_is_a_problem_of_the_second() -> None:
    content = parsed(f"{dedent(SLICE)}---{dedent(SLICE)}")
    assert [manifest.line for manifest in content.manifests.values()] == [2]
    assert [problem.text for problem in content.problems] == [
        "SliceBandwidth princeton/codeen is in this file already, in line 2: keep one of them"
    ]
    assert content.problems[0].line == 8


def test_what_is_right_in_a_file_is_given_beside_what_is_not() -> None:
    content = parsed(f"{dedent(SLICE)}---\nkind: [\n")
    assert list(content.manifests) == [Identity("SliceBandwidth", "princeton", "codeen")]
    assert [problem.line for problem in content.problems] == [9]


def test_a_wrong_value_in_a_spec_is_the_objects_own_matter() -> None:
    spec = the_slice(SLICE.replace("10M", "10Q"))
    assert spec.limits is None
    assert "spec.standard.maxRate" in spec.errors[0]


def test_a_handwritten_object_gets_the_same_uid_whatever_it_says() -> None:
    one, other = the_slice(SLICE), the_slice(SLICE.replace("10M", "20M"))
    assert one.uid == other.uid != ""
    assert the_slice(SLICE.replace("codeen", "other")).uid != one.uid
    assert the_slice(SLICE.replace("name: codeen", "name: codeen, uid: abc")).uid == "abc"


def test_the_generation_changes_with_the_spec_and_with_nothing_else() -> None:
    one = the_slice(SLICE)
    assert one.generation > 0
    assert the_slice(f"# a comment\n{dedent(SLICE)}").generation == one.generation
    assert the_slice(SLICE.replace("10M", "20M")).generation != one.generation
    assert the_slice(SLICE.replace("10M", "10Q")).generation != the_slice(SLICE.replace("10M", "10X")).generation


def test_an_edited_dump_gets_a_new_generation_although_it_carries_the_old_one() -> None:
    dump = SLICE.replace("name: codeen", "name: codeen, resourceVersion: '7', generation: 3")
    assert the_slice(dump).generation != the_slice(dump.replace("10M", "20M")).generation


def test_a_missing_namespace_is_the_default_one() -> None:
    assert the_slice(SLICE.replace(", namespace: princeton", "")).key.namespace == "default"


def test_a_field_unknown_in_a_file_is_an_error_but_not_in_a_dump_of_a_newer_server() -> None:
    assert the_slice(SLICE.replace("maxRate", "maxrate")).errors != ()
    stored = SLICE.replace("name: codeen", "name: codeen, resourceVersion: '7'")
    assert the_slice(stored.replace("maxRate", "futureField")).errors == ()


def test_a_time_before_the_year_1_is_no_reason_to_read_nothing_of_the_folder() -> None:
    early = b"!!timestamp 0001-01-01T00:00:00+23:00"
    content = b"{apiVersion: v1, kind: Pod, metadata: {name: p, creationTimestamp: " + early + b"}}"
    (found,) = read(content).manifests.values()
    assert isinstance(found.value, Pod)
    assert found.value.created_s == 0
