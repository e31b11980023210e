"""Virtual time, on both loops."""

from benchmark.simulation.clock import VirtualClock


def test_without_overlap_the_host_waits_for_each_forward():
    clock = VirtualClock(overlap=False)
    clock.launch(2.0)
    assert (clock.device, clock.host) == (2.0, 2.0)


def test_with_overlap_the_host_is_one_forward_behind():
    clock = VirtualClock(overlap=True)
    clock.launch(2.0)
    assert (clock.device, clock.host) == (2.0, 0.0)
    clock.begin_iteration()
    clock.launch(3.0)
    assert (clock.device, clock.host) == (5.0, 2.0)


def test_an_iteration_that_launches_nothing_waits_for_the_last_forward():
    clock = VirtualClock(overlap=True)
    clock.launch(2.0)
    clock.begin_iteration()
    assert clock.host == 2.0


def test_time_is_never_skipped_backwards():
    clock = VirtualClock(overlap=True)
    clock.skip_to(4.0)
    clock.skip_to(1.0)
    assert clock.host == 4.0
    clock.launch(1.0)
    assert clock.device == 5.0
