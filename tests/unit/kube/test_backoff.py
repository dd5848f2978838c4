"""The length of the pauses between attempts."""

from slicebw.kube.backoff import Backoff


def test_pauses_double_up_to_a_limit_and_start_again_after_success() -> None:
    backoff = Backoff(1.0, 8.0)
    pauses = [backoff.next_s() for _ in range(8)]
    for pause_s, base_s in zip(pauses, [1, 2, 4, 8, 8, 8, 8, 8], strict=True):
        assert base_s * 0.5 <= pause_s <= base_s * 1.5
    backoff.reset()
    assert backoff.next_s() <= 1.5


def test_a_backoff_can_be_iterated_any_number_of_times_each_from_the_start_as_kopf_does() -> None:
    backoff = Backoff(1.0, 8.0)
    for _ in range(3):
        row = iter(backoff)
        assert next(row) <= 1.5
        assert 1.0 <= next(row) <= 3.0
