"""Which ranks count as slow, by random times with known noise, and the waiting time in a profile."""

import gc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler import profile
from torch.profiler import profile as outer_profile

from parallel.health.stragglers import Stragglers, can_profile, step_profile, waiting_s
from parallel.layout.layout import Layout

EVERY = 25  # health.straggler_every_steps
CPU = torch.device("cpu")


def watch(data, *, pipeline=1):
    layout = Layout(1, pipeline, data, data, 1, (1,) * pipeline, False)
    return Stragglers(layout, CPU, every_steps=EVERY)


def findings(stragglers, steps, times_of, *, first=1):
    """Return step and change of all confirmed changes. `times_of` gives every rank's own seconds at a step."""
    found = []
    for step in range(first, first + steps):
        if stragglers.due(step):
            own = np.asarray(times_of(step), dtype=float)
            pairs = own if own.ndim == 2 else np.stack((own, np.zeros_like(own)), axis=1)
            found += [(step, change) for change in stragglers.detector.add(pairs)]
    return found


@pytest.mark.parametrize(("ranks", "noise"), [(2, 0.03), (8, 0.03), (64, 0.04)])
def test_a_rank_a_quarter_slower_is_named_within_fifty_steps(ranks, noise):
    """In 100 trials that start at different steps. Nearly all must be in time, and none may name another rank."""
    random = np.random.default_rng(ranks)
    in_time = 0
    for trial in range(100):
        slow = np.ones(ranks)
        slow[trial % ranks] = 1.25
        draw = lambda step: slow * np.exp(random.normal(0, noise, ranks))  # noqa: B023, E731
        found = findings(watch(ranks), 50, draw, first=1 + trial % EVERY)
        assert {change.rank for _, change in found} <= {trial % ranks}
        in_time += len(found) == 1
        assert all(1.1 < change.ratio < 1.4 and change.slow for _, change in found)
    assert in_time >= 95


@pytest.mark.parametrize(("ranks", "noise"), [(2, 0.1), (8, 0.05), (64, 0.05)])
def test_equal_ranks_are_never_named(ranks, noise):
    """In 20 runs of 1,000 steps, in which sometimes a step of one rank takes three times as long."""
    for seed in range(20):
        random = np.random.default_rng(seed)

        def times(step, random=random):
            own = np.exp(random.normal(0, noise, ranks))
            own[random.integers(ranks)] *= 3 if random.random() < 0.1 else 1
            return own

        assert findings(watch(ranks), 1000, times) == []


def test_a_rank_is_named_once_and_again_when_it_recovers():
    found = findings(watch(4), 400, lambda step: [1, 1, 1.5 if 100 < step <= 250 else 1, 1])
    assert [(change.rank, change.slow) for _, change in found] == [(2, True), (2, False)]
    (named_at, named), (well_at, _) = found
    assert 100 < named_at <= 150
    assert 250 < well_at <= 300
    assert named.ratio == pytest.approx(1.5)


def test_stages_of_a_pipeline_are_not_compared_with_each_other():
    """The ranks of the last stage have the head and need longer. Of these, one is slower still."""
    assert findings(watch(2, pipeline=2), 200, lambda step: [1, 1, 2, 2]) == []
    found = findings(watch(2, pipeline=2), 200, lambda step: [1, 1, 2, 2.6])
    assert [change.rank for _, change in found] == [3]
    assert not watch(1, pipeline=2).due(EVERY), "a rank alone in its stage has no peer"


def test_the_share_of_reading_data_is_measured():
    found = findings(watch(3), 60, lambda step: [[1, 0.1], [1, 0.1], [1.8, 0.7]])
    assert [change.rank for _, change in found] == [2]
    assert found[0][1].reading == pytest.approx(0.75)


def test_slowdowns_of_the_whole_machine_do_not_change_the_ratio_of_a_slow_rank():
    """In every other measurement all ranks take five times as long. In two of these the slow rank is not slower."""
    spared = (EVERY + 3, EVERY + 11)

    def times(step):
        busy = 5 if step % 4 == 0 else 1
        return [busy, busy * (0.9 if step in spared else 1.3)]

    found = findings(watch(2), 60, times)
    assert [change.rank for _, change in found] == [1]
    assert found[0][1].ratio == pytest.approx(1.3)


def test_a_measured_step_leaves_no_profile_behind():
    """Profiles in reference cycles took 226 kB a step until a full collection, which a training loop seldom causes."""
    stragglers = watch(2)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            with stragglers.step(EVERY):
                torch.ones(4).add(1)
        kinds = [type(thing) for thing in gc.get_objects()]
    finally:
        gc.enable()
    assert [kind for kind in kinds if issubclass(kind, (profile, outer_profile))] == []


def test_waiting_is_communication_without_computation_at_the_same_time():
    """Spans are in nanoseconds. Overlaps count once, and other events do not count."""

    def seen(*events):
        made = [
            SimpleNamespace(
                name=lambda name=name: name,
                start_ns=lambda start=start: start,
                end_ns=lambda end=end: end,
                device_type=lambda: DeviceType.CUDA,
            )
            for name, start, end in events
        ]
        return SimpleNamespace(kineto_results=SimpleNamespace(events=lambda: made))

    cpu = seen(("gloo:all_reduce", 100, 500), ("aten::mm", 0, 150), ("aten::add", 300, 350), ("autograd", 0, 900))
    assert waiting_s(cpu, CPU) * 1e9 == pytest.approx(300)
    cuda = seen(("ncclDevKernel_AllReduce", 0, 400), ("gemm", 300, 600), ("gemm", 350, 450))
    assert waiting_s(cuda, torch.device("cuda")) * 1e9 == pytest.approx(300)
    assert waiting_s(seen(), CPU) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it is a real profile")
def test_torch_takes_the_arguments_of_a_gpus_profile():
    """They were refused once, which would have ended a run of several GPUs at its first measurement. Here torch only
    misses the GPU."""
    with (
        pytest.warns(UserWarning, match="CUDA is not available"),
        pytest.raises(AssertionError, match="No activities specified"),
    ):
        step_profile(torch.device("cuda"))
    assert not can_profile(torch.device("cuda"))
    assert can_profile(CPU)


@pytest.mark.gpu
def test_a_gpu_that_computes_does_not_wait():
    """The profile has the GPU's kernels, and none of them is communication."""
    device, x = torch.device("cuda", 0), torch.randn(2048, 2048, device="cuda")
    assert can_profile(device)
    with step_profile(device) as seen:
        for _ in range(20):
            x = x @ x * 1e-3
        torch.cuda.synchronize()
    kernels = [event for event in seen.kineto_results.events() if event.device_type() == DeviceType.CUDA]
    assert len(kernels) >= 20
    assert waiting_s(seen, device) == 0
