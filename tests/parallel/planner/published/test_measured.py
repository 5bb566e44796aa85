"""Metrics and units of published rows as seconds of a step."""

import pytest

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from parallel.planner.hardware.tables import Cluster, read_hardware
from parallel.planner.published.measured import measured_seconds
from parallel.planner.step_time.job import Job

MODEL = ModelConfig(vocab_size=51200, n_ctx=2048, n_layers=24, d_model=2048, n_heads=16)
JOB = Job(MODEL, 2048, 4, 8, (24,), data=16)
HARDWARE = read_hardware()
CLUSTER = Cluster(HARDWARE.gpus["H100"], HARDWARE.networks["400G"], 8)


def seconds(metric, value, unit="", **also):
    return measured_seconds({"metric": metric, "value": str(value), "unit": unit, **also}, JOB, CLUSTER)


@pytest.mark.parametrize(
    ("metric", "rate", "units"),
    [
        ("iter_time", 1e-3, "ms milliseconds MS"),
        ("iter_time", 1, "s sec seconds ? -"),
        ("tokens_per_s", 1, "tok/s tokens/s tokens/sec tok/s/GPU tokenspersecond"),
        ("tokens_per_s_per_gpu", 1e3, "kTok/s ktokens/s/GPU"),
        ("samples_per_s", 1, "samples/s seqs/s sequences/s sequences/second"),
        ("tflops_per_gpu", 1, "TFLOP/s TFLOPS TFLOPs TFLOP/s/GPU TFLOPS/GPU TFLOPs/s"),
        ("tflops_per_gpu", 1e3, "PFLOP/s PFLOPS/GPU"),
        ("mfu", 0.01, "% percent"),
    ],
)
def test_spellings_of_units(metric, rate, units):
    plain = seconds(metric, 0.5)
    for unit in units.split():
        assert seconds(metric, 0.5 / rate, unit) == pytest.approx(plain), unit


def test_rates_of_samples():
    assert seconds("samples_per_s", 256) == pytest.approx(JOB.tokens / JOB.seq_len / 256)
    assert seconds("samples_per_s_per_gpu", 16) == pytest.approx(seconds("samples_per_s", 256))
    assert seconds("tokens_per_s", 256 * JOB.seq_len) == pytest.approx(seconds("samples_per_s", 256))


@pytest.mark.parametrize(
    ("metric", "value", "unit", "message"),
    [
        ("iter_time", "2", "fortnights", "unit fortnights is invalid with metric iter_time. Use s, sec, "),
        ("tokens_per_s", "2", "TFLOP/s", "unit tflop/s is invalid with metric tokens_per_s. Use tok/s"),
        ("tokens_per_s", "2", "tok/day", "unit tok/day is invalid"),
        ("iter_time", "fast", "s", "value fast is invalid: must be a number above 0"),
        ("iter_time", "nan", "s", "value nan is invalid"),
    ],
)
def test_what_is_no_time(metric, value, unit, message):
    with pytest.raises(ConfigError, match=message):
        seconds(metric, value, unit)
