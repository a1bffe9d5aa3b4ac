"""The clock: no second is lost or counted twice, and only steps count in the throughput."""

import itertools

import numpy as np
import pytest

from seqzoo.training.run.clock import Clock


class Time:
    """A time source that is set by hand."""

    def __init__(self, now=0.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def clock(time):
    return Clock(now=time)


def ticks(clock, time, *seconds, tokens=10, **more):
    """One tick after each of so many seconds."""
    for each in seconds:
        time.now += each
        clock.tick(tokens, **more)


def test_pauses_do_not_count_in_the_throughput(clock, time):
    ticks(clock, time, 0, 1, 1)
    clock.pause()
    ticks(clock, time, 398, 1)
    assert clock.tokens_per_second() == 10.0 and clock.seconds_per_step() == 1.0


def test_the_clock_gives_a_median_since_the_last_lap(clock, time):
    ticks(clock, time, 0, 1, 1, tokens=8, flops=80)
    assert clock.lap() == (1.0, 8.0, 80.0)
    ticks(clock, time, 0.5, 0.5, tokens=8, flops=80)
    assert clock.lap().tokens_per_second == 16.0 and clock.lap().tokens_per_second is None
    assert clock.tokens_per_second() == 12.0 and clock.flops_per_second() == 120.0


def test_without_a_complete_step_there_is_no_throughput(clock, time):
    ticks(clock, time, 0)
    assert clock.tokens_per_second() is clock.seconds_per_step() is clock.flops_per_second() is None
    assert clock.lap() == (None, None, None)


@pytest.mark.parametrize("name", ["compile", "eval", "save"])
def test_a_phase_that_interrupts_the_steps_is_not_in_their_throughput(clock, time, name):
    ticks(clock, time, 0, 1, 1)
    with clock.phase(name):
        time.now += 50
    ticks(clock, time, 1, 1)
    assert max(s for s, *_ in clock._samples) == 1.0 and clock.phases() == {"train": 4.0, name: 50.0}


def test_waiting_for_data_is_in_the_throughput_and_has_its_own_time(clock, time):
    ticks(clock, time, 0)
    with clock.phase("wait"):
        time.now += 3
    ticks(clock, time, 1)
    assert clock.seconds_per_step() == 4.0 and clock.phases() == {"train": 1.0, "wait": 3.0}


def test_the_time_until_the_next_item_is_there_is_waiting(clock, time):
    def slow():
        for item in "ab":
            time.now += 3
            yield item

    found = []
    for item in clock.waiting(slow()):
        found.append(item)
        time.now += 5
    assert found == ["a", "b"] and clock.phases() == {"train": 10.0, "wait": 6.0}


def test_a_phase_inside_another_takes_its_time_away_from_it_and_an_error_ends_both(clock, time):
    with pytest.raises(KeyError), clock.phase("eval"):
        time.now += 1
        with clock.phase("compile"):
            time.now += 2
        time.now += 4
        with clock.phase("wait"):
            time.now += 8
            raise KeyError
    time.now += 16
    assert clock.phases() == {"train": 16.0, "eval": 5.0, "compile": 2.0, "wait": 8.0}


def test_the_phases_add_up_to_the_total_time(clock, time):
    random = np.random.default_rng(0)
    for _ in range(50):
        time.now += random.uniform()
        for name in random.choice(["train", "eval", "save", "wait"], size=2):
            with clock.phase(str(name)):
                time.now += random.uniform()
                clock.tick(1)
        assert clock.total() == pytest.approx(time.now, rel=1e-12)


def test_a_resumed_run_continues_the_time_of_the_earlier_processes(time):
    time.now = 1000.0  # the other process's clock began somewhere else
    clock = Clock(now=time, earlier=60.0)
    time.now += 5
    assert clock.total() == 65.0 and clock.phases() == {"train": 5.0, "earlier": 60.0}


def test_medians_are_of_the_latest_steps_only(time):
    clock = Clock(now=time, keep=3)
    ticks(clock, time, *itertools.repeat(9, 5), 1, 1, 1)
    assert clock.seconds_per_step() == 1.0
