"""The latency loop: turns, medians of ratios, and what is outside of the time."""

import time

from diffratio.evaluation.latency import Times, rotating_times


def test_ratios_are_taken_round_by_round():
    """A machine that slows down in the middle changes times, not ratios."""
    slow = [1.0, 1.0, 3.0, 3.0, 3.0]
    times = Times([2 * s for s in slow])
    assert times.ratio(Times(slow)) == 2.0 and times.median == 6.0 and times.spread > 0.5
    assert Times([1.0]).spread == 0.0


def test_slow_subjects_get_three_rounds():
    passes = {"a": lambda: None}
    assert len(rotating_times(passes, 1, 9, "cpu", progress=False, most_seconds=0)["a"].seconds) == 3


def test_what_is_prepared_is_not_timed():
    order = []

    def wait():
        order.append("prepare")
        time.sleep(0.05)

    passes = {name: lambda n=name: order.append(n) for name in "ab"}
    prepare = {"a": wait, "b": lambda: None}
    times = rotating_times(passes, 1, 2, "cpu", progress=False, prepare=prepare)
    assert order == ["prepare", "a", "a", "b", "b"] * 2
    assert max(times["a"].seconds) < 0.05


def test_a_pass_of_several_calls_is_divided():
    times = rotating_times({"a": lambda: time.sleep(0.02)}, 4, 1, "cpu", progress=False)
    assert 0.005 <= times["a"].median < 0.02
