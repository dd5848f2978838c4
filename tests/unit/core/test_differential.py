"""A pass that goes on from the last one comes to the same as a pass from nothing, whatever has happened in between.

``SLICEBW_FUZZ_HISTORIES`` is how many random histories are played, ``SLICEBW_FUZZ_SEED`` is what to replay; the seed is
printed at every run.
"""

import os
import random
from dataclasses import fields

import pytest
from hypothesis import HealthCheck, Phase, given, note, seed, settings

from slicebw.core.node_pass import PassResult
from tests.unit.core.histories import History, Step, World, histories, slice_ids

HISTORIES = int(os.environ.get("SLICEBW_FUZZ_HISTORIES", "200"))
SEED = int(os.environ.get("SLICEBW_FUZZ_SEED", random.SystemRandom().randrange(2**32)))
FIRST_STEPS = (Step(wait_s=0), Step(), Step())
"""The tree is built, and is seen to hold."""


def differences(result: PassResult, anew: PassResult) -> list[str]:
    """What the two passes do not agree on, field by field; the memory for the next pass is not compared."""
    found = []
    for field in fields(result):
        one, other = getattr(result, field.name), getattr(anew, field.name)
        if field.compare and one != other:
            found.append(f"{field.name}:\n  from the last pass: {one}\n  from nothing:       {other}")
    return found


def play(history: History) -> None:
    """Play a history and compare after every pass; at the end once more, should one have altered what it was given."""
    world = World()
    outcomes = []
    with slice_ids(history.slice_ids):
        for number, step in enumerate((*FIRST_STEPS, *history.steps), -len(FIRST_STEPS)):
            result, anew = world.play(step)
            if result != anew:
                note(str(history))
                pytest.fail("\n".join([f"step {number}: {step}", *differences(result, anew)]))
            outcomes.append((result, anew))
    for result, anew in outcomes:
        assert result == anew, "a later pass has altered the outcome of an earlier one"


def test_going_on_from_the_last_pass_comes_to_the_same_as_beginning_anew(capsys: pytest.CaptureFixture[str]) -> None:
    @seed(SEED)
    @settings(
        max_examples=HISTORIES,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(histories())
    def any_history(history: History) -> None:
        play(history)

    with capsys.disabled():
        print(f"\nSLICEBW_FUZZ_SEED={SEED} SLICEBW_FUZZ_HISTORIES={HISTORIES}", end=" ")
    any_history()
