"""Published rows as jobs: conventions of FLOPs, unknown settings."""

import os
import re

import pytest

from gpt.errors import ConfigError
from parallel.planner.hardware.tables import read_hardware
from parallel.planner.published.rows import NEEDED, published_runs, read_rows

COLUMNS = (
    "id,source,gpu,n_gpus,layers,hidden,heads,kv_groups,ffn,vocab,tied_emb,seq,tp,pp,vpp,cp,dp,mbs,gbs,recompute,sp,"
    "precision,opt_shard"
)
VALUES = "x,Megatron-LM,H100,16,24,2048,16,16,8192,51200,1,2048,2,4,2,1,2,1,64,none,1,bf16,dist-opt"


def one(**given):
    facts = {"metric": "iter_time", "value": "2", "unit": "s", "convention": "", "note": "", **given}
    if "metric" in given and "unit" not in given:
        facts["unit"] = ""
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
    assert one(metric="tokens_per_s_per_gpu", value=f"{tokens / 2 / 16}").seconds == pytest.approx(2)
    model = 72 * 24 * 2048**2 * (1 + 2048 / 6 / 2048 + 51200 / 12 / 24 / 2048) * tokens
    assert one(metric="tflops_per_gpu", value=f"{model / 2 / 16e12}", convention="model").seconds == pytest.approx(2)
    hardware = 96 * 24 * 2048**2 * (1 + 2048 / 6 / 2048 + 51200 / 16 / 24 / 2048) * tokens
    assert one(
        metric="tflops_per_gpu", value=f"{hardware / 2 / 16e12}", convention="hardware"
    ).seconds == pytest.approx(2)


def test_names_of_gpus_and_precisions():
    assert one(also={"gpu": "H100-SXM5-80GB-HBM3"}).cluster.gpu.name == "H100"
    assert one(also={"gpu": "H100-PCIe-80GB"}).cluster.gpu.name == "H100-PCIe"
    assert one(also={"precision": "MXFP8"}).jobs[0].precision == "fp8"
    assert one(also={"precision": "?"}).jobs[0].precision == "bf16"
    row = dict(zip(COLUMNS.split(","), VALUES.split(","), strict=True)) | {"metric": "iter_time", "value": "1"}
    runs, left_out = published_runs([row | {"precision": "nvfp4"}, row], read_hardware())
    assert len(runs) == 1
    assert left_out == ["row x: precision nvfp4 is not modelled. Use rows in bf16, fp16, fp8 or fp32"]


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
    fast, slow = sorted(seconds for _, seconds in run.readings(run.stack))
    job, seconds = run.fastest(run.stack)
    assert job.recompute == "none"
    assert seconds == pytest.approx((fast * slow) ** 0.5)  # doubtful: between the two readings
    assert [job.recompute for job in one(also={"recompute": "stated full; not compiled"}).jobs] == ["full"]


def test_other_units_and_metrics():
    run = one()
    tokens, peak = run.jobs[0].tokens, run.cluster.gpu.peak * 1e12
    assert one(value="2,000", unit="ms").seconds == 2
    assert one(metric="tokens_per_s", value=f"{tokens / 2}").seconds == pytest.approx(2)
    mfu = 72 * 24 * 2048**2 * (1 + 2048 / 6 / 2048 + 51200 / 12 / 24 / 2048) * tokens / 2 / 16 / peak
    for value, unit in ((mfu, ""), (100 * mfu, "%"), (100 * mfu, "")):
        assert one(metric="mfu", value=f"{value}", unit=unit).seconds == pytest.approx(2)
    assert one(value="2000", unit="milliseconds").seconds == 2
    assert one(metric="samples_per_s", value="32").seconds == pytest.approx(tokens / run.jobs[0].seq_len / 32)


def test_optional_columns_may_be_absent_or_empty():
    whole = dict(zip(COLUMNS.split(","), VALUES.split(","), strict=True)) | {"metric": "iter_time", "value": "2"}
    few = {key: whole[key] for key in NEEDED}
    (run,), left_out = published_runs([few | {"tp": "2", "pp": "4"}], read_hardware())
    assert left_out == []
    job = run.jobs[0]
    assert (job.data, job.model.ff_width, job.precision, run.stack.name) == (2, 8192, "bf16", "plain")
    wrong = {
        "vocab, gbs are missing": {"vocab": "", "gbs": "?"},
        "n_gpus = 17 is invalid: tp 2 x pp 4 x cp 1 x dp 2 is 16": {"n_gpus": "17"},
        "gbs = 63 is invalid": {"gbs": "63"},
        "split 12,11 is invalid": {"split": "12,11"},
        "network 'IBX' is unknown": {"network": "IBX"},
    }
    rows = [whole | {"id": words} | change for words, change in wrong.items()]
    runs, left_out = published_runs([*rows, whole], read_hardware())
    assert len(runs) == 1
    assert [words in line for words, line in zip(wrong, left_out, strict=True)] == [True] * len(wrong)


def test_an_uneven_split():
    assert one(also={"split": "5;7;7;5", "vpp": "1"}).jobs[0].split == (5, 7, 7, 5)


def test_a_source_that_names_two_programs():
    assert one(also={"source": "NVIDIA-NeMo/Megatron-Bridge docs"}).stack.name == "megatron-bridge"
    assert one(also={"source": "arXiv 2104.04473 Table 1; config: Megatron-LM"}).stack.name == "megatron-2021"
    assert one(also={"source": "KempnerForge", "note": "eager"}).stack.name == "kempnerforge-eager"


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ({"layers": "1e9"}, "1e9 is invalid: must be a whole number from 1 to 2000"),
        ({"hidden": "9" * 400}, "9+ is invalid"),
        ({"cp": "-1"}, "-1 is invalid"),
        ({"tp": "2.5"}, "2.5 is invalid"),
        ({"vpp": "1000000"}, "1000000 is invalid"),
        ({"gbs": "1073741824", "vpp": "1"}, "are more than can be simulated"),
        ({"value": "1e308", "metric": "tflops_per_gpu"}, "a step of .* s cannot be"),
        ({"gpu": "A100", "precision": "fp8"}, ".*this GPU has no fp8"),
        ({"value": "fast"}, "value fast is invalid: must be a number above 0"),
        ({"unit": "fortnights"}, "unit fortnights is invalid with metric iter_time\\. Use s, sec, "),
        ({"metric": ""}, "metric is missing"),
        ({"metric": "tokens_per_day"}, "metric 'tokens_per_day' is unknown. Use iter_time, "),
        ({"precision": "int8"}, "precision int8 is not modelled"),
        ({"precision": "tf32"}, "precision tf32 is not modelled"),
    ],
)
def test_a_row_that_cannot_be_is_left_out_in_one_line(also, message):
    row = dict(zip(COLUMNS.split(","), VALUES.split(","), strict=True)) | {"metric": "iter_time", "value": "1"}
    runs, (line,) = published_runs([row | also], read_hardware())
    assert not runs
    assert re.match(f"row x: .*{message}", line), line


def test_files_of_strangers_are_refused_in_one_line(tmp_path):
    path, head = tmp_path / "rows.csv", ",".join(NEEDED)
    for data, message in ((b"\xff\xfe", "not a CSV file"), (f"{head}\n{'x' * 200_000}\n".encode(), "not a CSV file")):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=message):
            read_rows(path)
    path.write_text(f"{head}\na,H100{',' * 9}\n{',' * 10}\n")
    assert [row["id"] for row in read_rows(path)] == ["a"]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="a named pipe"):
        read_rows(path)
