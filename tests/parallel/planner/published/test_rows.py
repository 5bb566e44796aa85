"""Published rows as jobs: conventions of FLOPs, unknown settings."""

import pytest

from parallel.planner.hardware.tables import read_hardware
from parallel.planner.published.rows import published_runs

COLUMNS = (
    "id,source,gpu,n_gpus,layers,hidden,heads,kv_groups,ffn,vocab,tied_emb,seq,tp,pp,vpp,cp,dp,mbs,gbs,recompute,sp,"
    "precision,opt_shard"
)
VALUES = "x,Megatron-LM,H100,16,24,2048,16,16,8192,51200,1,2048,2,4,2,1,2,1,64,none,1,bf16,dist-opt"


def one(**given):
    facts = {"metric": "iter_time", "value": "2", "unit": "s", "convention": "", "note": "", **given}
    row = dict(zip(COLUMNS.split(","), VALUES.split(","), strict=True))
    also = facts.pop("also", {})
    facts["flops_convention"] = facts.pop("convention")
    (run,), _ = published_runs([row | facts | also], read_hardware())
    return run


def test_rates_give_the_same_time_as_the_time_itself():
    run = one()
    assert run.seconds == 2
    tokens = run.jobs[0].tokens
    assert tokens == 64 * 2048
    assert one(metric="tokens_per_s_per_gpu", value=tokens / 2 / 16).seconds == pytest.approx(2)
    model = 72 * 24 * 2048**2 * (1 + 2048 / 6 / 2048 + 51200 / 12 / 24 / 2048) * tokens
    assert one(metric="tflops_per_gpu", value=model / 2 / 16e12, convention="model").seconds == pytest.approx(2)
    hardware = 96 * 24 * 2048**2 * (1 + 2048 / 6 / 2048 + 51200 / 16 / 24 / 2048) * tokens
    assert one(metric="tflops_per_gpu", value=hardware / 2 / 16e12, convention="hardware").seconds == pytest.approx(2)


def test_names_of_gpus_and_precisions():
    assert one(also={"gpu": "H100-SXM5-80GB-HBM3"}).cluster.gpu.name == "H100"
    assert one(also={"gpu": "H100-PCIe-80GB"}).cluster.gpu.name == "H100-PCIe"
    assert one(also={"precision": "MXFP8"}).jobs[0].precision == "fp8"
    row = dict(zip(COLUMNS.split(","), VALUES.split(","), strict=True)) | {"metric": "iter_time", "value": "1"}
    runs, left_out = published_runs([row | {"precision": "nvfp4"}, row], read_hardware())
    assert len(runs) == 1
    assert left_out == ["row x: precision nvfp4 is not modelled. Use rows in bf16, fp16 or fp8"]


def test_the_layout_of_a_row():
    (job,) = one().jobs
    assert (job.tensor, job.pipeline, job.data, job.micro_batches) == (2, 4, 2, 32)
    assert (job.schedule, job.split) == ("interleaved_1f1b", (3,) * 8)
    assert (job.zero, job.recompute, job.sequence_parallel) == (1, "none", True)


def test_unknown_settings_give_all_values_that_fit():
    run = one(also={"vpp": "?", "mbs": "?", "recompute": "stated full"})
    assert {job.micro_batch_size for job in run.jobs} == {1, 2, 4, 8}
    assert {len(job.split) // job.pipeline for job in run.jobs} == {1, 2, 3, 6}
    assert {job.recompute for job in run.jobs} == {"none", "full"}
    assert run.fastest(run.stack)[0].recompute == "none"
