"""The time of rollouts: bounds that memory and messages give."""

from dataclasses import replace

import pytest

from gpt.model.config import ModelConfig
from parallel.planner.hardware.tables import Cluster, read_hardware
from parallel.planner.step_time.job import Job
from parallel.planner.step_time.rollouts import forward_s, sampling_s, token_s
from parallel.planner.step_time.step import step_time

HARDWARE = read_hardware()
STACK = HARDWARE.stacks["triaxial"]
CLUSTER = Cluster(HARDWARE.gpus["H100"], HARDWARE.networks["400G"], 8)
MODEL = ModelConfig(vocab_size=50257, n_ctx=2048, n_layers=32, d_model=8192, n_heads=64)
JOB = Job(MODEL, 2048, 1, 64, (32,))


def test_a_token_reads_all_weights_once():
    read_s = 2 * MODEL.parameters / 3.35e12
    assert read_s < token_s(JOB, CLUSTER, STACK, rows=1, context=64) < 1.6 * read_s
    both = token_s(replace(JOB, tensor=8), CLUSTER, STACK, rows=1, context=64)
    assert both < token_s(JOB, CLUSTER, STACK, rows=1, context=64)
    longer = token_s(JOB, CLUSTER, STACK, rows=64, context=2000)
    cache_s = 2 * 2 * 64 * 2000 * MODEL.d_model * 32 / 3.35e12
    assert longer > read_s + cache_s


def test_stages_of_a_token_work_one_after_the_other():
    one = token_s(JOB, CLUSTER, STACK, rows=8, context=512)
    piped = replace(JOB, pipeline=4, split=(8,) * 4)
    assert token_s(piped, CLUSTER, STACK, rows=8, context=512) == pytest.approx(one, rel=0.05)


def test_the_launch_of_kernels_bounds_a_small_model():
    small = replace(JOB, model=replace(MODEL, d_model=512, n_heads=8))
    assert token_s(small, CLUSTER, STACK, rows=1, context=64) > 32 * 1e-4


def test_a_forward_is_a_third_of_a_step():
    assert forward_s(JOB, CLUSTER, STACK) / step_time(JOB, CLUSTER, STACK).seconds == pytest.approx(1 / 3, rel=0.2)


def test_rollouts_grow_with_the_response():
    short, long = (sampling_s(JOB, CLUSTER, STACK, rows=8, prompt=100, response=n) for n in (100, 200))
    assert 1.8 < long / short < 2.2
