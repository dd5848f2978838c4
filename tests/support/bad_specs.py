"""Invalid SliceBandwidths and NodeBandwidths: who refuses each first, and which field the message must name.

One table serves three checks: an API server of Kubernetes 1.20 (schema), one from 1.25 on (schema and CEL), and
slicebw's own parsers, which are the only check of a manifest in a folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final


class Catch(Enum):
    """The first that refuses the spec. Those after it refuse it, too."""

    SCHEMA = "any API server"
    CEL = "an API server from Kubernetes 1.25 on"
    AGENT = "nobody but slicebw"
    PRUNED = "kubectl, from the published schema; an API server leaves the field out, a folder's agent refuses it"


@dataclass(frozen=True, slots=True)
class Bad:
    """A spec that is wrong in one place. ``said`` is slicebw's own message after the name of the field."""

    name: str
    catch: Catch
    spec: Any
    field: str
    said: str


SCHEMA, CEL, AGENT, PRUNED = Catch.SCHEMA, Catch.CEL, Catch.AGENT, Catch.PRUNED

NO_RATE: Final = "is not a rate: use bit/s with an optional suffix k, M, G, T, Ki, Mi, Gi (10M is 10,000,000 bit/s)"
NO_BYTES: Final = "is not a number of bytes: use bytes with an optional suffix k, M, G, T, Ki, Mi, Gi, Ti"
NO_PERIOD: Final = "is not a duration: use whole hours, minutes and seconds, in that order (24h, 1h30m, 90s)"
NO_SHARE: Final = "is not a share: use a whole number from 1 to 1000"
NO_VALUE: Final = "is not a label value: use a string of up to 63 letters, digits, -, _ and ."
NO_KEY: Final = "is not a label key: use letters, digits, -, _ and . (app, example.org/role)"
LONG: Final = "9" * 10_000
RANGE: Final = "is out of range: use 1s to 8784h (366 days)"


def standard(**fields: Any) -> Mapping[str, Any]:
    return {"standard": fields}


def exempt(**fields: Any) -> Mapping[str, Any]:
    return {"exempt": fields}


def expression(**fields: Any) -> Mapping[str, Any]:
    return {"podSelector": {"matchExpressions": [fields]}}


def labels(**fields: Any) -> Mapping[str, Any]:
    return {"podSelector": {"matchLabels": fields}}


def nested(depth: int) -> Any:
    """Nest mappings to this depth."""
    value: Any = {}
    for _ in range(depth):
        value = {"x": value}
    return value


EXPRESSION: Final = "spec.podSelector.matchExpressions[0]"

SLICES: Final = (
    # Wrong types.
    Bad("spec-is-a-list", SCHEMA, [], "spec", "a list must be an object with named fields"),
    Bad("spec-is-a-text", SCHEMA, "10M", "spec", '"10M" must be an object with named fields'),
    Bad("class-is-a-text", SCHEMA, {"standard": "10M"}, "spec.standard", '"10M" must be an object with named fields'),
    Bad("class-is-a-list", SCHEMA, {"exempt": []}, "spec.exempt", "a list must be an object with named fields"),
    Bad("rate-is-a-fraction", SCHEMA, standard(maxRate=1.5), "spec.standard.maxRate", "1.5 is not a rate: write it as a"
        ' string ("1.5G") or a whole number'),
    Bad("rate-is-true", SCHEMA, standard(minRate=True), "spec.standard.minRate", f"true {NO_RATE}"),
    Bad("rate-is-a-list", SCHEMA, standard(minRate=["8"]), "spec.standard.minRate", f"a list {NO_RATE}"),
    Bad("rate-is-a-mapping", SCHEMA, exempt(maxRate={"rate": 8}), "spec.exempt.maxRate", f"an object {NO_RATE}"),
    Bad("rate-is-a-deep-mapping", SCHEMA, exempt(maxRate=nested(90)), "spec.exempt.maxRate", f"an object {NO_RATE}"),
    Bad("period-is-a-number", SCHEMA, {"period": 24}, "spec.period", f"24 {NO_PERIOD}"),
    Bad("share-is-a-text", SCHEMA, {"share": "2"}, "spec.share", f'"2" {NO_SHARE}'),
    Bad("share-is-a-fraction", SCHEMA, {"share": 1.5}, "spec.share", f"1.5 {NO_SHARE}"),
    Bad("share-is-true", SCHEMA, exempt(share=True), "spec.exempt.share", f"true {NO_SHARE}"),
    Bad("threshold-is-a-list", SCHEMA, standard(threshold=[]), "spec.standard.threshold", f"a list {NO_BYTES}"),
    Bad("selector-is-a-text", SCHEMA, {"podSelector": "app=web"}, "spec.podSelector", '"app=web" must be an object'),
    Bad("labels-are-a-list", SCHEMA, {"podSelector": {"matchLabels": ["app"]}}, "spec.podSelector.matchLabels", "a list"
        " must be an object with named fields"),
    Bad("label-is-a-number", SCHEMA, labels(app=1), "spec.podSelector.matchLabels.app", f"1 {NO_VALUE}"),
    Bad("label-is-true", SCHEMA, labels(app=True), "spec.podSelector.matchLabels.app", f"true {NO_VALUE}"),
    Bad("expressions-are-a-mapping", SCHEMA, {"podSelector": {"matchExpressions": {"key": "app"}}},
        "spec.podSelector.matchExpressions", "an object must be a list"),
    Bad("expression-is-a-text", SCHEMA, {"podSelector": {"matchExpressions": ["app"]}}, EXPRESSION,
        '"app" must be an object with named fields'),
    # Texts that are not quantities.
    Bad("rate-empty", SCHEMA, standard(minRate=""), "spec.standard.minRate", f'"" {NO_RATE}'),
    Bad("rate-blank", SCHEMA, standard(minRate=" 8"), "spec.standard.minRate", f'" 8" {NO_RATE}'),
    Bad("rate-negative", SCHEMA, standard(minRate="-8"), "spec.standard.minRate", f'"-8" {NO_RATE}'),
    Bad("rate-of-bits-spelt-out", SCHEMA, standard(maxRate="10Mbit"), "spec.standard.maxRate", f'"10Mbit" {NO_RATE}'),
    Bad("rate-in-thousandths", SCHEMA, standard(maxRate="10m"), "spec.standard.maxRate", '"10m" is not a rate: m means'
        " thousandths; millions are 10M"),
    Bad("rate-with-a-capital-k", SCHEMA, standard(minRate="8K"), "spec.standard.minRate", f'"8K" {NO_RATE}'),
    Bad("rate-in-exa", SCHEMA, exempt(maxRate="1E"), "spec.exempt.maxRate", f'"1E" {NO_RATE}'),
    Bad("rate-in-arabic-digits", SCHEMA, standard(minRate="\u0668"), "spec.standard.minRate",
        '"\\u0668" is not a rate'),
    Bad("rate-with-a-huge-exponent", SCHEMA, standard(maxRate="1e999"), "spec.standard.maxRate", f'"1e999" {NO_RATE}'),
    Bad("rate-with-suffix-and-exponent", SCHEMA, standard(maxRate="1e3M"),
        "spec.standard.maxRate", f'"1e3M" {NO_RATE}'),
    Bad("rate-in-hexadecimal", SCHEMA, standard(maxRate="0x10"), "spec.standard.maxRate", f'"0x10" {NO_RATE}'),
    Bad("rate-with-a-comma", SCHEMA, standard(maxRate="1,5M"), "spec.standard.maxRate", f'"1,5M" {NO_RATE}'),
    Bad("rate-infinite", SCHEMA, standard(maxRate="inf"), "spec.standard.maxRate", f'"inf" {NO_RATE}'),
    Bad("rate-with-a-newline", SCHEMA, standard(maxRate="10M\n"), "spec.standard.maxRate", '"10M\\n" is not a rate'),
    Bad("rate-too-long", SCHEMA, standard(maxRate=LONG), "spec.standard.maxRate", f'"{"9" * 40}"... {NO_RATE}'),
    Bad("budget-empty", SCHEMA, standard(budget=""), "spec.standard.budget", f'"" {NO_BYTES}'),
    Bad("budget-negative", SCHEMA, standard(budget="-1G"), "spec.standard.budget", f'"-1G" {NO_BYTES}'),
    Bad("budget-in-words", SCHEMA, exempt(budget="10 GB"), "spec.exempt.budget", f'"10 GB" {NO_BYTES}'),
    Bad("budget-too-long", SCHEMA, exempt(budget=LONG), "spec.exempt.budget", f'"{"9" * 40}"... {NO_BYTES}'),
    # Numbers out of bounds.
    Bad("rate-zero", SCHEMA, standard(minRate=0), "spec.standard.minRate", "0 is too low: at least 8 bit/s"),
    Bad("rate-negative-number", SCHEMA, standard(minRate=-8), "spec.standard.minRate",
        "-8 is too low: at least 8 bit/s"),
    Bad("rate-huge-number", SCHEMA, standard(maxRate=10**18), "spec.standard.maxRate",
        "1000000000000000000 is too high:"
        " at most 1P, 10^15 bit/s"),
    Bad("budget-zero", SCHEMA, standard(budget=0), "spec.standard.budget", "0 is too low: at least 1 byte"),
    Bad("budget-huge-number", SCHEMA, standard(budget=2 * 10**18), "spec.standard.budget",
        "2000000000000000000 is too high: at most 1000P, 10^18 bytes"),
    Bad("budget-of-thirty-digits", SCHEMA, exempt(budget=10**29), "spec.exempt.budget", f"{10**29} is too high: at most"
        " 1000P, 10^18 bytes"),
    Bad("share-zero", SCHEMA, {"share": 0}, "spec.share", f"0 {NO_SHARE}"),
    Bad("share-negative", SCHEMA, {"share": -1}, "spec.share", f"-1 {NO_SHARE}"),
    Bad("share-huge", SCHEMA, {"share": 1001}, "spec.share", f"1001 {NO_SHARE}"),
    Bad("exempt-share-huge", SCHEMA, exempt(share=2**40), "spec.exempt.share", f"{2**40} {NO_SHARE}"),
    # Thresholds.
    Bad("threshold-0-percent", SCHEMA, standard(threshold="0%"), "spec.standard.threshold",
        '"0%" is not a percentage: use a whole one from 1% to 100% (80%)'),
    Bad("threshold-101-percent", SCHEMA, standard(threshold="101%"), "spec.standard.threshold", '"101%" is not a'
        " percentage"),
    Bad("threshold-80.5-percent", SCHEMA, exempt(threshold="80.5%"), "spec.exempt.threshold", '"80.5%" is not a'
        " percentage"),
    Bad("threshold-080-percent", SCHEMA, exempt(threshold="080%"), "spec.exempt.threshold",
        '"080%" is not a percentage'),
    Bad("threshold-negative-percent", SCHEMA, standard(threshold="-5%"), "spec.standard.threshold", '"-5%" is not a'
        " percentage"),
    Bad("threshold-percent-sign-alone", SCHEMA, standard(threshold="%"), "spec.standard.threshold", '"%" is not a'
        " percentage"),
    Bad("threshold-80-meant-as-percent", SCHEMA, standard(threshold=80), "spec.standard.threshold",
        "80 means bytes here,"
        ' which is too low: at least 101 bytes, or a percentage of the budget ("80%")'),
    Bad("threshold-empty", SCHEMA, standard(threshold=""), "spec.standard.threshold", f'"" {NO_BYTES}'),
    # Periods.
    Bad("period-empty", SCHEMA, {"period": ""}, "spec.period", f'"" {NO_PERIOD}'),
    Bad("period-without-unit", SCHEMA, {"period": "3600"}, "spec.period", f'"3600" {NO_PERIOD}'),
    Bad("period-in-days", SCHEMA, {"period": "7d"}, "spec.period", f'"7d" {NO_PERIOD}; 7 days are 168h'),
    Bad("period-in-the-wrong-order", SCHEMA, {"period": "30m1h"}, "spec.period", f'"30m1h" {NO_PERIOD}'),
    Bad("period-with-a-fraction", SCHEMA, {"period": "1.5h"}, "spec.period", f'"1.5h" {NO_PERIOD}'),
    Bad("period-negative", SCHEMA, {"period": "-24h"}, "spec.period", f'"-24h" {NO_PERIOD}'),
    Bad("period-in-milliseconds", SCHEMA, {"period": "100ms"}, "spec.period", f'"100ms" {NO_PERIOD}'),
    Bad("period-too-many-digits", SCHEMA, {"period": "100000h"}, "spec.period", f'"100000h" {NO_PERIOD}'),
    # Selectors.
    Bad("operator-unknown", SCHEMA, expression(key="app", operator="Equals", values=["x"]), f"{EXPRESSION}.operator",
        '"Equals" is not an operator: use In, NotIn, Exists, DoesNotExist'),
    Bad("operator-in-lower-case", SCHEMA, expression(key="app", operator="in", values=["x"]), f"{EXPRESSION}.operator",
        '"in" is not an operator'),
    Bad("operator-missing", SCHEMA, expression(key="app"), f"{EXPRESSION}.operator", "must be given"),
    Bad("key-missing", SCHEMA, expression(operator="Exists"), f"{EXPRESSION}.key", "must be given"),
    Bad("key-empty", SCHEMA, expression(key="", operator="Exists"), f"{EXPRESSION}.key", f'"" {NO_KEY}'),
    Bad("key-with-a-blank", SCHEMA, expression(key="a b", operator="Exists"), f"{EXPRESSION}.key", f'"a b" {NO_KEY}'),
    Bad("key-too-long", SCHEMA, expression(key="a" * 64, operator="Exists"), f"{EXPRESSION}.key", f'"{"a" * 40}"...'),
    Bad("value-with-a-slash", SCHEMA, expression(key="app", operator="In", values=["a/b"]), f"{EXPRESSION}.values[0]",
        f'"a/b" {NO_VALUE}'),
    Bad("value-too-long", SCHEMA, expression(key="app", operator="In", values=["a" * 64]), f"{EXPRESSION}.values[0]",
        f'"{"a" * 40}"... {NO_VALUE}'),
    Bad("values-are-a-text", SCHEMA, expression(key="app", operator="In", values="x"), f"{EXPRESSION}.values",
        '"x" must be a list'),
    Bad("label-value-with-a-blank", SCHEMA, labels(app="a b"), "spec.podSelector.matchLabels.app", f'"a b" {NO_VALUE}'),
    Bad("label-value-of-10000", SCHEMA, labels(app="a" * 10_000), "spec.podSelector.matchLabels.app", f'"{"a" * 40}"...'
        f" {NO_VALUE}"),
    # A schema cannot express these rules: an older server accepts them.
    Bad("min-above-max", CEL, standard(minRate="20M", maxRate="10M"), "spec.standard.minRate",
        '"20M" is above the maxRate of "10M": use at most that'),
    Bad("min-above-max-in-other-units", CEL, exempt(minRate="1Mi", maxRate=1_048_575), "spec.exempt.minRate",
        '"1Mi" is above the maxRate of 1048575: use at most that'),
    Bad("rate-zero-as-text", CEL, standard(minRate="0"), "spec.standard.minRate", '"0" is too low: at least 8 bit/s'),
    Bad("rate-leading-zeros", CEL, standard(minRate="0000007"), "spec.standard.minRate", '"0000007" is too low'),
    Bad("rate-below-a-byte-a-second", CEL, exempt(maxRate="7.9"), "spec.exempt.maxRate", '"7.9" is too low'),
    Bad("rate-small-by-its-exponent", CEL, standard(minRate="8e-1"), "spec.standard.minRate", '"8e-1" is too low'),
    Bad("rate-huge-by-its-exponent", CEL, standard(maxRate="1e99"), "spec.standard.maxRate", '"1e99" is too high'),
    Bad("rate-huge-by-its-suffix", CEL, exempt(maxRate="1.001P"), "spec.exempt.maxRate", '"1.001P" is too high: at most'
        " 1P, 10^15 bit/s"),
    Bad("rate-huge-by-its-digits", CEL, standard(maxRate="9" * 32),
        "spec.standard.maxRate", f'"{"9" * 32}" is too high'),
    Bad("budget-zero-as-text", CEL, standard(budget="0"), "spec.standard.budget", '"0" is too low: at least 1 byte'),
    Bad("budget-zero-with-suffix", CEL, exempt(budget="0.0Gi"), "spec.exempt.budget", '"0.0Gi" is too low'),
    Bad("budget-huge-as-text", CEL, standard(budget="1001P"), "spec.standard.budget", '"1001P" is too high: at most'
        " 1000P, 10^18 bytes"),
    Bad("threshold-above-budget", CEL, standard(budget="1G", threshold="1.1G"), "spec.standard.threshold",
        '"1.1G" is above the budget of "1G": use at most that, or 1% to 100%'),
    Bad("threshold-above-the-default-budget", CEL, standard(threshold="1T"), "spec.standard.threshold",
        '"1T" is above the budget of "10800M"'),
    Bad("threshold-80-as-text", CEL, exempt(threshold="80"), "spec.exempt.threshold", '"80" means bytes here, which is'
        ' too low: at least 101 bytes, or a percentage of the budget ("80%")'),
    Bad("threshold-huge", CEL, exempt(threshold="9e18"), "spec.exempt.threshold", '"9e18" is too high'),
    Bad("period-zero", CEL, {"period": "0s"}, "spec.period", f'"0s" {RANGE}'),
    Bad("period-zero-in-all-units", CEL, {"period": "0h0m0s"}, "spec.period", f'"0h0m0s" {RANGE}'),
    Bad("period-too-long", CEL, {"period": "8784h1s"}, "spec.period", f'"8784h1s" {RANGE}'),
    Bad("period-far-too-long", CEL, {"period": "99999h"}, "spec.period", f'"99999h" {RANGE}'),
    Bad("in-without-values", CEL, expression(key="app", operator="In"), f"{EXPRESSION}.values",
        "In needs at least one value"),
    Bad("notin-with-no-values", CEL, expression(key="app", operator="NotIn", values=[]), f"{EXPRESSION}.values",
        "NotIn needs at least one value"),
    Bad("exists-with-values", CEL, expression(key="app", operator="Exists", values=["x"]), f"{EXPRESSION}.values",
        "Exists takes no values"),
    # Neither a schema nor a CEL rule checks the keys of a mapping.
    Bad("label-key-with-a-blank", AGENT, {"podSelector": {"matchLabels": {"a b": "x"}}},
        "spec.podSelector.matchLabels.a b", f'"a b" {NO_KEY}'),
    Bad("label-key-in-capitals", AGENT, {"podSelector": {"matchLabels": {"Example.org/a": "x"}}},
        "spec.podSelector.matchLabels.Example.org/a", f'"Example.org/a" {NO_KEY}'),
    Bad("label-key-empty", AGENT, {"podSelector": {"matchLabels": {"": "x"}}}, "spec.podSelector.matchLabels",
        f'"" {NO_KEY}'),
    Bad("label-key-of-10000", AGENT, {"podSelector": {"matchLabels": {"a" * 10_000: "x"}}},
        "spec.podSelector.matchLabels", f'"{"a" * 40}"... {NO_KEY}'),
    # Misspelled.
    Bad("class-misspelled", PRUNED, {"standart": {}}, "spec.standart", "unknown field; did you mean standard?"),
    Bad("rate-misspelled", PRUNED, standard(minrate="8"), "spec.standard.minrate",
        "unknown field; did you mean minRate?"),
    Bad("share-in-the-wrong-class", PRUNED, standard(share=2), "spec.standard.share",
        "unknown field; there are minRate,"
        " maxRate, budget, threshold"),
    Bad("labels-misspelled", PRUNED, {"podSelector": {"matchLabel": {}}}, "spec.podSelector.matchLabel", "unknown"
        " field; did you mean matchLabels?"),
    Bad("expression-misspelled", PRUNED, expression(key="app", operator="In", values=["x"], value="x"),
        f"{EXPRESSION}.value", "unknown field; did you mean values?"),
)  # fmt: skip

NO_NETWORK: Final = "is not a network: use a network or an address (192.0.2.0/24, 2001:db8::/32, 192.0.2.1)"

NODES: Final = (
    Bad("spec-is-a-list", SCHEMA, [], "spec", "a list must be an object with named fields"),
    Bad("device-is-a-number", SCHEMA, {"device": 0}, "spec.device", "0 is not a network device"),
    Bad("device-empty", SCHEMA, {"device": ""}, "spec.device", '"" is not a network device'),
    Bad("device-too-long", SCHEMA, {"device": "e" * 16}, "spec.device", f'"{"e" * 16}" is not a network device'),
    Bad("device-with-a-slash", SCHEMA, {"device": "../etc"}, "spec.device", '"../etc" is not a network device'),
    Bad("cap-in-words", SCHEMA, {"cap": "100 Mbit"}, "spec.cap", f'"100 Mbit" {NO_RATE}'),
    Bad("cap-of-100", SCHEMA, {"cap": 100}, "spec.cap", "100 is too low: at least 1M"),
    Bad("cap-negative", SCHEMA, {"cap": "-1M"}, "spec.cap", f'"-1M" {NO_RATE}'),
    Bad("cap-is-a-list", SCHEMA, {"cap": ["1M"]}, "spec.cap", f"a list {NO_RATE}"),
    Bad("line-rate-huge", SCHEMA, {"lineRate": 10**16}, "spec.lineRate", f"{10**16} is too high"),
    Bad("line-rate-is-a-fraction", SCHEMA, {"lineRate": 1.5}, "spec.lineRate",
        "1.5 is not a rate: write it as a string"),
    Bad("mode-in-lower-case", SCHEMA, {"mode": "monitor"}, "spec.mode", '"monitor" is not a mode: use Enforce, Monitor,'
        " Disabled"),
    Bad("mode-empty", SCHEMA, {"mode": ""}, "spec.mode", '"" is not a mode'),
    Bad("mode-is-false", SCHEMA, {"mode": False}, "spec.mode", "false is not a mode"),
    Bad("share-without-sign", SCHEMA, {"minRateShare": "25"}, "spec.minRateShare", '"25" is not a percentage'),
    Bad("share-0-percent", SCHEMA, {"minRateShare": "0%"}, "spec.minRateShare", '"0%" is not a percentage'),
    Bad("share-101-percent", SCHEMA, {"minRateShare": "101%"}, "spec.minRateShare", '"101%" is not a percentage'),
    Bad("share-is-a-number", SCHEMA, {"minRateShare": 25}, "spec.minRateShare", "25 is not a percentage"),
    Bad("destinations-are-a-text", SCHEMA, {"exemptDestinations": "10.0.0.0/8"}, "spec.exemptDestinations",
        '"10.0.0.0/8" must be a list'),
    Bad("destination-is-a-name", SCHEMA, {"exemptDestinations": ["example.org"]}, "spec.exemptDestinations[0]",
        f'"example.org" {NO_NETWORK}'),
    Bad("destination-is-a-number", SCHEMA, {"exemptDestinations": [10]}, "spec.exemptDestinations[0]",
        f"10 {NO_NETWORK}"),
    Bad("unclassified-is-a-rate", SCHEMA, {"unclassified": "10M"}, "spec.unclassified",
        '"10M" must be an object with named fields'),
    Bad("unclassified-in-words", SCHEMA, {"unclassified": {"maxRate": "10 Mbit"}}, "spec.unclassified.maxRate",
        f'"10 Mbit" {NO_RATE}'),
    Bad("unclassified-of-0", SCHEMA, {"unclassified": {"exemptMaxRate": 0}}, "spec.unclassified.exemptMaxRate",
        "0 is too low: at least 1M"),
    Bad("unclassified-in-thousands", CEL, {"unclassified": {"maxRate": "999k"}}, "spec.unclassified.maxRate",
        '"999k" is too low: at least 1M'),
    Bad("unclassified-misspelt", PRUNED, {"unclassified": {"exemptmaxrate": "1G"}}, "spec.unclassified.exemptmaxrate",
        "unknown field; did you mean exemptMaxRate?"),
    Bad("cap-of-100-as-text", CEL, {"cap": "100"}, "spec.cap", '"100" is too low: at least 1M'),
    Bad("cap-in-thousands", CEL, {"cap": "999k"}, "spec.cap", '"999k" is too low: at least 1M'),
    Bad("line-rate-huge-by-its-exponent", CEL, {"lineRate": "1e20"}, "spec.lineRate", '"1e20" is too high'),
    Bad("line-rate-huge-by-its-suffix", CEL, {"lineRate": "2P"}, "spec.lineRate", '"2P" is too high'),
    Bad("destination-with-host-bits", AGENT, {"exemptDestinations": ["10.1.2.3/8"]}, "spec.exemptDestinations[0]",
        '"10.1.2.3/8" has bits set behind its prefix: did you mean 10.0.0.0/8?'),
    Bad("destination-out-of-range", AGENT, {"exemptDestinations": ["10.0.0.0/8", "999.1.1.1"]},
        "spec.exemptDestinations[1]", f'"999.1.1.1" {NO_NETWORK}'),
    Bad("destination-with-a-long-prefix", AGENT, {"exemptDestinations": ["10.0.0.0/33"]}, "spec.exemptDestinations[0]",
        f'"10.0.0.0/33" {NO_NETWORK}'),
    Bad("rate-misspelled", PRUNED, {"linerate": "1G"}, "spec.linerate", "unknown field; did you mean lineRate?"),
)  # fmt: skip
