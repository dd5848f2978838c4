"""What only nftables can show of NftClassifier: tampering, what nft lists, scale, and a missing nft."""

from pathlib import Path

import pytest

from slicebw.core.dataplane import NftTable, ReplaceTable, UpdateTable
from slicebw.core.errors import KernelError
from slicebw.core.plan import plan_table
from slicebw.kernel import nft
from slicebw.kernel.nft import NftClassifier
from tests.support.topology import Namespace

DESIRED = NftTable({"10.0.0.1": 1, "10.0.0.2": 2, "fd00::1": 1}, frozenset({"192.0.2.0/24"}))
TABLE = "inet slicebw"


def first_handle(namespace: Namespace, words: str) -> str:
    """Return the handle of the first rule that has these words."""
    listing = namespace.run("nft", "-a", "list", "table", "inet", "slicebw")
    (line, *_) = [line for line in listing.splitlines() if words in line]
    return line.rpartition("# handle ")[2]


TAMPERINGS = {
    "a foreign rule first": [f"insert rule {TABLE} postrouting counter accept"],
    "a foreign rule last": [f"add rule {TABLE} exempt counter"],
    "a chain flushed": [f"flush chain {TABLE} exempt"],
    "both chains flushed": [f"flush chain {TABLE} postrouting", f"flush chain {TABLE} exempt"],
    "a foreign chain": [f"add chain {TABLE} other"],
    "another policy": [f"chain {TABLE} postrouting {{ policy drop; }}"],
    "a foreign set": [f"add set {TABLE} other {{ type ipv4_addr; }}"],
    "a rule taken out": ["delete rule {TABLE} postrouting handle {handle}"],
    "a rule replaced": ["replace rule {TABLE} postrouting handle {handle} iif 0 meta priority set 1:1001 accept"],
    "a set deleted": [
        f"flush chain {TABLE} postrouting",
        f"delete set {TABLE} exempt_destinations4",
    ],
    "an address in one map only": [f"delete element {TABLE} exempt4 {{ 10.0.0.1 }}"],
    "an address in two slices": [
        f"delete element {TABLE} exempt4 {{ 10.0.0.1 }}",
        f"add element {TABLE} exempt4 {{ 10.0.0.1 : 1:2002 }}",
    ],
    "an address in no slice": [f"add element {TABLE} standard4 {{ 10.0.0.9 : 1:1fff }}"],
    "an address in a foreign tree": [f"add element {TABLE} standard4 {{ 10.0.0.9 : 2:1001 }}"],
    "destinations that are no network": [f"add element {TABLE} exempt_destinations4 {{ 10.0.0.1-10.0.0.6 }}"],
    "destinations in pieces": [f"add element {TABLE} exempt_destinations4 {{ 10.0.0.0/25, 10.0.0.128/25 }}"],
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_tampering_is_noticed_and_the_table_is_written_anew(
    namespace: Namespace, classifier: NftClassifier, tampering: str
) -> None:
    classifier.apply(ReplaceTable(DESIRED))
    assert classifier.read() == DESIRED
    handle = first_handle(namespace, "iif 0")
    lines = [line.replace("{TABLE}", TABLE).replace("{handle}", handle) for line in TAMPERINGS[tampering]]
    namespace.run("nft", "-f", "-", text="\n".join(lines))
    observed = classifier.read()
    assert (observed.present, observed.intact) == (True, False)
    change = plan_table(DESIRED, observed)
    assert change == ReplaceTable(DESIRED)
    classifier.apply(change)
    assert classifier.read() == DESIRED


@pytest.mark.parametrize("command", ["delete table inet slicebw", "flush ruleset"])
def test_a_deleted_table_is_noticed(namespace: Namespace, classifier: NftClassifier, command: str) -> None:
    classifier.apply(ReplaceTable(DESIRED))
    assert classifier.read().present
    namespace.run("nft", command)
    assert classifier.read() == NftTable(intact=False, present=False)


@pytest.mark.parametrize("command", ["flush map inet slicebw standard4", "add element ip other places { 10.0.0.1 }"])
def test_other_tables_and_other_elements_are_not_tampering(
    namespace: Namespace, classifier: NftClassifier, command: str
) -> None:
    namespace.run("nft", "-f", "-", text="table ip other { set places { type ipv4_addr; }\n }")
    classifier.apply(ReplaceTable(DESIRED))
    if "flush" in command:
        namespace.run("nft", "flush map inet slicebw standard4; flush map inet slicebw exempt4")
        assert classifier.read().slice_id_by_address == {"fd00::1": 1}
    else:
        namespace.run("nft", command)
        assert classifier.read() == DESIRED
    assert classifier.read().intact


def test_a_new_agent_knows_the_table_of_the_one_before(namespace: Namespace, classifier: NftClassifier) -> None:
    classifier.apply(ReplaceTable(DESIRED))
    successor = NftClassifier()
    assert successor.read() == DESIRED
    successor.close()


def test_with_an_unknown_nft_the_table_is_learned_when_it_is_written(
    namespace: Namespace, classifier: NftClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nft, "_KNOWN_FINGERPRINTS", frozenset())
    classifier.apply(ReplaceTable(DESIRED))
    assert classifier.read() == DESIRED
    successor = NftClassifier()
    assert not successor.read().intact
    successor.apply(ReplaceTable(DESIRED))
    assert successor.read() == DESIRED
    namespace.run("nft", "insert rule inet slicebw exempt counter")
    assert not successor.read().intact
    successor.close()


def test_nothing_is_listed_again_while_nobody_commits(
    namespace: Namespace, classifier: NftClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier.apply(ReplaceTable(DESIRED))
    assert classifier.read() == DESIRED
    with monkeypatch.context() as no_programs:
        no_programs.setenv("PATH", "/nowhere")
        assert classifier.read() == DESIRED
    namespace.run("nft", "add table ip other")
    with monkeypatch.context() as no_programs:
        no_programs.setenv("PATH", "/nowhere")
        with pytest.raises(KernelError, match=r"^there is no nft program: apt install nftables$"):
            classifier.read()
    assert classifier.read() == DESIRED


def test_what_nft_complains_of_is_one_line(namespace: Namespace, classifier: NftClassifier) -> None:
    classifier.apply(ReplaceTable(DESIRED))
    with pytest.raises(KernelError) as caught:
        classifier.apply(UpdateTable(remove=("10.0.0.77",)))
    assert str(caught.value).startswith("nft -f -: ")
    assert "delete element inet slicebw standard4 { 10.0.0.77 }" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(
    Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"],
    reason="in a user namespace nft's batches are bounded by net.core.wmem_max",
)
def test_eight_thousand_addresses_are_written_changed_and_read(namespace: Namespace, classifier: NftClassifier) -> None:
    slices = {f"10.{n // 250}.0.{n % 250}": n % 4094 + 1 for n in range(4000)}
    slices |= {f"fd00::{n:x}": n % 4094 + 1 for n in range(1, 4001)}
    desired = NftTable(slices, frozenset({"192.0.2.0/24"}))
    classifier.apply(ReplaceTable(desired))
    assert classifier.read() == desired
    moved = NftTable({address: number % 4094 + 1 for address, number in slices.items()})
    change = plan_table(moved, classifier.read())
    assert isinstance(change, UpdateTable)
    classifier.apply(change)
    assert classifier.read() == moved


def test_the_table_stays_when_the_classifier_goes(namespace: Namespace) -> None:
    classifier = NftClassifier()
    classifier.apply(ReplaceTable(DESIRED))
    classifier.close()
    assert "map standard4" in namespace.run("nft", "list", "ruleset")


def test_the_rendered_table_is_the_golden_one() -> None:
    golden = Path(__file__).parent / "golden" / "table.nft"
    assert nft.render(DESIRED) == golden.read_text()
