"""Runs that come upon damaged token files: none learns from them; all ranks end together, or leave out the same
samples, also where only one of them sees the damage; and a run that was killed does the same again."""

import json
import re
import shutil

import numpy as np
import pytest
import torch.distributed as dist

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.dataset import TrainingData
from gpt.data.skipped import SkippedData
from launch.main import main
from parallel.checkpoint.folders import list_checkpoints
from parallel.checkpoint.handle import read_checkpoint_header, verify_checkpoint
from parallel.checkpoint.load import read_tensors

SEQ_LEN, STEPS, A_STEP = 64, 12, 8  # samples
STEPS_HIT = (3, 7)  # before and after the checkpoint from which the killed run resumes


@pytest.fixture(scope="module")
def corpora(tiny_corpus, tmp_path_factory):
    """The corpus whole and damaged; and the positions that a run leaves out, as simple arithmetic has it."""
    folder = tmp_path_factory.mktemp("corpora")
    for name in ("whole", "damaged"):
        (folder / name).mkdir()
        for suffix in (".bin", ".idx", ".sums"):
            shutil.copy(f"{tiny_corpus.folder / 'train'}{suffix}", folder / name / f"train{suffix}")
    data = TrainingData(
        DataConfig(tokenizer="none", train=(CorpusConfig(str(folder / "whole" / "train")),), seq_len=SEQ_LEN),
        seed=3,
        vocab_size=512,
    )
    tokens = np.memmap(folder / "damaged" / "train.bin", dtype="<u2", mode="r+")
    blocks = set()
    for step in STEPS_HIT:
        place = data.locate((step - 1) * A_STEP + 5).first_token + SEQ_LEN // 2
        tokens[place] ^= 1
        blocks.add(place * 2 // 4096)
    tokens.flush()
    left_out, position, read = [], 0, 0
    while read < STEPS * A_STEP:
        first = data.locate(position).first_token
        if blocks & set(range(first * 2 // 4096, ((first + SEQ_LEN) * 2 + 1) // 4096 + 1)):
            left_out.append(position)
        else:
            read += 1
        position += 1
    return folder, left_out


@pytest.fixture(scope="module")
def runs(tiny_corpus, corpora, watched_ranks, tmp_path_factory):
    folder, (data, left_out) = tmp_path_factory.mktemp("runs"), corpora

    def run(name, axis, corpus, *words, **more):
        path, directory = data / corpus / "train", folder / name.removesuffix("_again") / "run"
        common = [tiny_corpus.recipe, "--run.directory", directory, f"--parallel.{axis}", 2]
        common += ["--metrics.wandb", "disabled", "--train.validation_tokens", 64, "--run.peak_flops_per_s", 1e12]
        common += ["--data.train", f'[{{ path = "{path}" }}]', *words]
        return {"name": name, "nproc": 2, "words": [*map(str, common)], **more}

    skip = ["--faults.on_damaged_data", "skip"]
    stated = ["--data.skip", [[p, p + 1] for p in left_out]]
    whole, damaged = (str(data / name / "train.bin") for name in ("whole", "damaged"))
    plan = [
        run("skip", "data", "damaged", *skip),
        run("stated", "data", "whole", *stated),
        run("killed", "data", "damaged", *skip, kill={"rank": 1, "call": 8}),
        run("killed_again", "data", "damaged", *skip),
        run("one_disk", "tensor", "whole", *skip, disk={"rank": 1, "file": whole, "other": damaged}),
        run("stop", "pipeline", "damaged"),
        run("stop_again", "pipeline", "whole"),
        run("undisturbed", "pipeline", "whole"),
    ]
    return folder, watched_ranks.launch(folder, plan)


def events(directory, kind):
    lines = map(json.loads, (directory / "events.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def losses(directory):
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def newest(directory):
    return list_checkpoints(directory / "checkpoints")[0]


def tensors(directory):
    return {name: tensor.numpy().tobytes() for name, tensor in read_tensors(verify_checkpoint(newest(directory)))}


@pytest.mark.parametrize("name", ["skip", "killed", "one_disk"])
def test_a_run_leaves_damaged_samples_out_and_is_otherwise_undisturbed(runs, corpora, name):
    folder, seen = runs
    left_out = corpora[1]
    assert len(left_out) >= len(STEPS_HIT)
    last = f"{name}_again" if name == "killed" else name
    assert seen[last]["status"] == [0, 0], seen[last]["written"]
    directory, other = folder / name / "run", folder / "stated" / "run"
    assert losses(directory).keys() == set(range(1, STEPS + 1))
    if name == "one_disk":  # on other ranks than the run that it is compared with
        assert losses(directory) == pytest.approx(losses(other), abs=1e-5)
    else:
        assert losses(directory) == losses(other), "bit for bit"
        assert tensors(directory) == tensors(other)
    state = read_checkpoint_header(newest(directory)).state
    skipped = SkippedData.from_json(state["loop"]["skipped"])
    assert [r.first for r in skipped.ranges] == left_out
    assert all(r.stop == r.first + 1 and "damaged data: " in r.why for r in skipped.ranges)
    assert state["samples_seen"] == STEPS * A_STEP, "batches stay of full size"
    told = events(directory, "data_damaged")
    assert sorted({event["position"] for event in told}) == left_out
    assert {event["step"] + 1 for event in told} >= set(STEPS_HIT)
    said = (
        r"train\.bin: bytes [\d,]+ to [\d,]+ have the checksum \w{8}, but train\.sums says \w{8}.*corpus 'train', win"
    )
    assert all(re.search(said, event["text"]) for event in told)
    attempts = [line for line in seen[name]["ranks"][0] if line["unchanged"]]
    assert len(attempts) >= (1 if name == "killed" else 2), "which a discarded step is"
    assert not any(line["skipped"] for line in seen[name]["ranks"][0]), "and no step that was not finite"


def test_the_audit_names_what_was_left_out(runs, corpora, capsys):
    folder, _ = runs
    position = corpora[1][0]
    assert main(["data", "audit", str(folder / "skip" / "run"), "--positions", f"{position}-{position}"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(rf"skipped: positions {position:,} to {position:,} \(damaged data: \S*train\.bin: bytes", shown)


def test_a_run_that_is_to_stop_does_so_on_all_ranks_and_goes_on_when_the_file_is_mended(runs, corpora):
    folder, seen = runs
    assert seen["stop"]["status"] == [2, 2]
    (told,) = [line for line in seen["stop"]["written"][0].splitlines() if "error:" in line]
    first = STEPS_HIT[0] - 1
    assert re.search(
        r"damaged/train\.bin: bytes [\d,]+ to [\d,]+ have the checksum \w+, but train\.sums says \w+: the file is "
        rf"damaged\. It holds position {corpora[1][0]} .*corpus 'train', window .*document.*--faults\.on_damaged_data "
        rf"skip; .*at step {first}$",
        told,
    )
    assert "Traceback" not in "".join(seen["stop"]["written"])
    (event,) = events(folder / "stop" / "run", "data_damaged")
    assert event["step"] == first
    assert seen["stop_again"]["status"] == [0, 0], seen["stop_again"]["written"]
    assert "resumed from" in seen["stop_again"]["written"][0]
    assert losses(folder / "stop" / "run") == losses(folder / "undisturbed" / "run"), "bit for bit"
    assert tensors(folder / "stop" / "run") == tensors(folder / "undisturbed" / "run")


def test_damaged_validation_windows_and_too_much_damage(tiny_corpus, tmp_path, capsys):
    """In this process: evaluation leaves the windows out or ends the run. Too many damaged samples end it too."""
    for name in ("train", "validation"):
        for suffix in (".bin", ".idx", ".sums"):
            shutil.copy(f"{tiny_corpus.folder / name}{suffix}", tmp_path / f"{name}{suffix}")
    words = ["train", str(tiny_corpus.recipe), "--metrics.wandb", "disabled", "--run.peak_flops_per_s", "1e12"]
    words += ["--train.total_tokens", "1024", "--data.train", f'[{{ path = "{tmp_path}/train" }}]']
    words += ["--data.validation", f'[{{ path = "{tmp_path}/validation" }}]', "--train.evaluate_every_tokens", "512"]

    def train(name, *more):
        status = main([*words, "--run.directory", str(tmp_path / name), *more])
        if dist.is_initialized():  # after an error a process leaves it to its end
            dist.destroy_process_group()
        return status, capsys.readouterr().err

    assert train("whole", "--run.seed", "4") == (0, "")
    with (tmp_path / "validation.bin").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff")
    status, said = train("stop", "--run.seed", "4")
    assert status == 2
    assert re.search(
        r"validation\.bin: bytes 0 to 4,095 .* It holds window 0 of the validation corpus 'validation'", said
    )
    assert [path.name for path in (tmp_path / "stop" / "checkpoints").iterdir()] == ["step-000000001"]
    assert train("skip", "--run.seed", "4", "--faults.on_damaged_data", "skip") == (0, "")
    assert losses(tmp_path / "skip") == losses(tmp_path / "whole")
    told = events(tmp_path / "skip", "data_damaged")
    assert {event["step"] for event in told} == {1}, "once"
    assert len(told) == 32, "windows of 64 tokens of two bytes that lie in a block of 4,096"
    (tmp_path / "train.bin").write_bytes(bytes((tmp_path / "train.bin").stat().st_size))
    limit = ["--faults.on_damaged_data", "skip", "--faults.max_damaged_samples", "20"]
    status, said = train("too_much", *limit)
    assert status == 2
    assert "More samples than faults.max_damaged_samples = 20 are damaged: copy the file again" in said
    assert list((tmp_path / "too_much" / "checkpoints").iterdir()) == []


def test_files_without_checksums_are_named_and_get_some(tiny_corpus, tmp_path, capsys):
    prefix = tmp_path / "theirs"
    for suffix in (".bin", ".idx"):
        shutil.copy(f"{tiny_corpus.folder / 'train'}{suffix}", f"{prefix}{suffix}")
    words = ["train", str(tiny_corpus.recipe), "--metrics.wandb", "disabled", "--run.peak_flops_per_s", "1e12"]
    words += ["--train.total_tokens", "512", "--data.train", f'[{{ path = "{prefix}" }}]', "--data.validation", "[]"]
    command = f"triaxial prepare checksum {prefix}"
    warning = f"data: damage of {prefix} would not be noticed, since there are no checksums; `{command}`"
    checksum = ["prepare", "checksum", str(prefix)]
    for number, told in enumerate((1, 0)):
        assert main([*words, "--run.directory", str(tmp_path / f"run{number}")]) == 0
        assert capsys.readouterr().out.count(warning) == told, "once, and not when they are there"
        assert main(checksum) == 0
        assert capsys.readouterr().out == f"{['wrote ', ''][number]}{prefix}{['.sums', ': whole'][number]}\n"
    made = (tmp_path / "theirs.sums").read_bytes()
    assert made == (tiny_corpus.folder / "train.sums").read_bytes()
    with open(f"{prefix}.bin", "r+b") as file:
        file.seek(9000)
        file.write(b"\xff\xff")
    assert main(checksum) == 1
    shown = capsys.readouterr().out
    assert re.search(r"theirs\.bin: bytes 8,192 to 12,287 have the checksum \w{8}, but theirs\.sums says \w{8}", shown)
    assert "1 faults" not in shown
    assert "1 fault. Copy the file again (or declare it correct with --replace)" in shown
    assert main([*checksum, "--replace"]) == 0
    assert (tmp_path / "theirs.sums").read_bytes() != made
    assert main(["prepare", "checksum", str(tmp_path / "nothing")]) == 2
    assert "nothing.idx: no such token file" in capsys.readouterr().err
