"""Predictions from the profile of a machine that obeys formulas, against these formulas.

It covers parallel.planner.machine.work, parallel.planner.machine.costs, parallel.planner.machine.messages and
parallel.planner.machine.group_costs.
"""

from dataclasses import replace

import pytest
from made_profile import KERNEL_S, KERNELS, SIZES, SPEED, WAIT_S, alone_sample, data_sample, made_profile, passes

from gpt.errors import ConfigError
from parallel.planner.hardware.tables import Cluster, read_hardware
from parallel.planner.machine.measured_step import measured_machine, measured_parts
from parallel.planner.machine.profile import MachineIdentity
from parallel.planner.step_time.step import step_time

MACHINE = measured_machine(made_profile(MachineIdentity("cpu", "AVX512", 2, "2.13.0")))
NEW = (384, 6, 4096, 128, 2)  # a model that is in no sample


@pytest.mark.parametrize("size", [1, 2, 16])
def test_one_process_is_the_sum_of_its_kernels_and_costs(size):
    """Also with few tokens, where weights and starts dominate, and with many, where kernels do."""
    new = (*NEW[:4], size)
    sample = alone_sample(*new)
    for micro_batches in (1, 5):
        job = replace(sample.job, micro_batches=micro_batches)
        found = measured_parts(job, MACHINE)
        rest = sample.step - 2 * sum(passes(*new))
        assert found.busy.total == pytest.approx(micro_batches * sum(passes(*new)), rel=0.01)
        assert found.data == pytest.approx(rest, rel=0.02)
        assert found.optimizer == pytest.approx(sample.update, rel=0.02)
        assert found.total == pytest.approx(found.busy.total + rest + sample.update, rel=0.01)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_data_ranks_add_the_messages_of_their_zero_stage(zero):
    sample = data_sample(alone_sample(*NEW), zero)
    assert measured_parts(sample.job, MACHINE).total == pytest.approx(sample.step + sample.update, rel=0.02)


def test_tensor_ranks_halve_the_products_and_add_messages():
    job = replace(alone_sample(*NEW).job, tensor=2)
    found = measured_parts(job, MACHINE)
    forward, backward = passes(*NEW)
    started = 2 * 6 * KERNELS * KERNEL_S
    assert found.busy.tensor > 2 * (8 * 6 + 6) * WAIT_S
    assert found.busy.overhead > 2 * started * 0.9
    assert found.busy.products < (forward + backward) / 2 * 2
    assert found.total > (forward + backward) + 2 * (8 * 6 + 6) * WAIT_S


def test_a_pipeline_takes_the_time_of_the_samples_that_gave_its_costs():
    profile = made_profile(MachineIdentity("cpu", "AVX512", 2, "2.13.0"))
    samples = [each for each in profile.by_ranks[1].samples if each.pipeline == 2]
    assert len(samples) == 10
    for each in samples:
        found = measured_parts(each.job, MACHINE)
        assert found.total - found.optimizer == pytest.approx(each.step, rel=0.02)
        assert found.bubble + found.pipeline > 0
        with pytest.raises(ConfigError, match=r"parallel.schedule = 'gpipe' is invalid with a profile"):
            measured_parts(replace(each.job, schedule="gpipe"), MACHINE)


def repeated(d, layers, vocab, length, size):
    """Seconds of the blocks' forward without the last product of each, which torch skips."""
    block = passes(d, layers, vocab, length, size)[0] - passes(d, layers - 1, vocab, length, size)[0]
    return layers * (block - 8 * length * size * d * d / SPEED)


def test_recomputation_repeats_the_forward_pass_of_the_blocks():
    """One sample whose ratio of products to other work is not that of the job."""
    known = alone_sample(*SIZES[0])
    again = replace(known, recompute="full", backward=known.backward + repeated(*SIZES[0]))
    profile = made_profile(MachineIdentity("cpu", "AVX512", 2, "2.13.0"))
    one = replace(profile.by_ranks[0], samples=(*profile.by_ranks[0].samples, again))
    machine = measured_machine(replace(profile, by_ranks=(one,)))
    job = alone_sample(*NEW).job
    full, plain = (measured_parts(each, machine).busy for each in (replace(job, recompute="full"), job))
    assert full.recompute > 0
    assert full.total == pytest.approx(plain.total + 2 * repeated(*NEW), rel=0.02)


def test_a_cluster_with_a_machine_predicts_by_it_and_its_parts_add_up():
    hardware = read_hardware()
    cluster = Cluster(hardware.gpus["H100"], hardware.networks["400G"], 2, MACHINE)
    job = replace(alone_sample(*NEW).job, pipeline=2, split=(3, 3), micro_batches=4)
    time = step_time(job, cluster, hardware.stacks["triaxial"])
    assert time.seconds == pytest.approx(measured_parts(job, MACHINE).total)
    assert sum(time.parts.values()) == pytest.approx(time.seconds)
    assert time.low < time.seconds < time.high


def test_what_was_not_measured_is_refused_in_one_line():
    job = alone_sample(*NEW).job
    with pytest.raises(ConfigError, match=r"no times of 1 ranks in bf16: .* in fp32\. .* --precision bf16"):
        measured_parts(replace(job, precision="bf16"), MACHINE)
    with pytest.raises(ConfigError, match=r"no times of 4 ranks in fp32: .* with 1, 2 ranks .* --ranks 4"):
        measured_parts(replace(job, data=4), MACHINE)
