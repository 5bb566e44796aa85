"""A run that meets poisoned data rewinds automatically and skips the stated samples and nothing else, twice. It does
the same if it is killed in between. `data audit` shows what was read."""

import functools
import json
import re
import shutil

import numpy as np
import pytest

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.dataset import TrainingData
from gpt.data.skipped import SkippedData
from launch.main import main
from parallel.checkpoint.folders import list_checkpoints
from parallel.checkpoint.handle import read_checkpoint_header, verify_checkpoint
from parallel.checkpoint.load import read_tensors
from parallel.layout.config import BatchConfig

SEQ_LEN, STEPS = 64, 64
RAMP = BatchConfig(2, 512, ramp_tokens=2048, ramp_initial_tokens=256, ramp_increment_tokens=256).ramp
SPIKE = {"window_steps": 16, "min_steps": 16, "sigmas": 4.0, "min_rise_nats": 0.5, "patience_steps": 3}
SPIKE |= {"rewind_steps": 5, "skip_steps": 10}
POISONED = (30, 50)  # the first of four steps, in the count of the run at that time


def samples_seen(step):
    return RAMP.tokens_seen(step) // SEQ_LEN


def left_out():
    """Return the poisoned positions, and the positions that a run which rewinds skips for them."""
    skipped, poisoned = SkippedData(), []
    for step in POISONED:
        poisoned += skipped.positions(samples_seen(step - 1), samples_seen(step + 3) - samples_seen(step - 1)).tolist()
        target = step - SPIKE["rewind_steps"]
        first, stop = samples_seen(target), samples_seen(target + SPIKE["skip_steps"])
        skipped = skipped.without_samples(first, stop, why=f"the loss spike at step {step}")
    return poisoned, skipped


@pytest.fixture(scope="module")
def poisoned(tiny_corpus, tmp_path_factory):
    """The corpus with random ids at the positions that the run reads at steps 30 to 33, and later at 50 to 53."""
    prefix = tmp_path_factory.mktemp("poisoned") / "train"
    for ending in (".bin", ".idx"):
        shutil.copy(f"{tiny_corpus.folder / 'train'}{ending}", f"{prefix}{ending}")
    data = TrainingData(
        DataConfig(tokenizer="none", train=(CorpusConfig(str(prefix)),), seq_len=SEQ_LEN), seed=3, vocab_size=512
    )
    tokens = np.memmap(f"{prefix}.bin", dtype="<u2", mode="r+")
    draw = np.random.default_rng(0)
    for position in left_out()[0]:
        first = data.locate(position).first_token + 1
        tokens[first : first + SEQ_LEN - 1] = draw.integers(2, 512, SEQ_LEN - 1)
    tokens.flush()
    return prefix, data


def run(name, folder, corpus, prefix, *, spike=(), nproc=2, directory=None, **more):
    words = [corpus.recipe, "--run.directory", directory or folder / name / "run", "--metrics.wandb", "disabled"]
    words += ["--data.train", f'[{{ path = "{prefix}" }}]', "--train.total_tokens", RAMP.tokens_seen(STEPS)]
    words += ["--batch.ramp_tokens", 2048, "--batch.ramp_initial_tokens", 256, "--batch.ramp_increment_tokens", 256]
    words += ["--checkpoint.every_tokens", 4 * 512, "--checkpoint.keep_last", 5, "--train.validation_tokens", 64]
    settings = {"spike.action": "rewind", **{f"spike.{key}": value for key, value in SPIKE.items()}, **dict(spike)}
    words += [word for key, value in settings.items() for word in (f"--{key}", value)]
    return {"name": name, "nproc": nproc, "words": [*map(str, words)], **more}


def losses(run_directory):
    lines = map(json.loads, (run_directory / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def events(run_directory, kind):
    lines = map(json.loads, (run_directory / "events.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def newest(run_directory):
    return list_checkpoints(run_directory / "checkpoints")[0]


@pytest.fixture(scope="module")
def runs(tiny_corpus, poisoned, watched_ranks, tmp_path_factory):
    """A run that rewinds, and a run whose recipe skips the same positions from the beginning."""
    folder = tmp_path_factory.mktemp("rewound")
    stated = [[r.first, r.stop] for r in left_out()[1].ranges]
    plan = [
        run("rewound", folder, tiny_corpus, poisoned[0]),
        run("stated", folder, tiny_corpus, poisoned[0], spike={"spike.action": "off", "data.skip": stated}),
    ]
    return folder, watched_ranks.launch(folder, plan)


def test_a_run_rewinds_and_skips_the_poisoned_data(runs):
    folder, seen = runs
    directory = folder / "rewound" / "run"
    assert seen["rewound"]["status"] == [0, 0], seen["rewound"]
    ranges = left_out()[1].ranges
    assert [event["first_step"] for event in events(directory, "spike")] == list(POISONED)
    rewinds = events(directory, "rewind")
    assert [event["skipped"] for event in rewinds] == [[r.first, r.stop] for r in ranges]
    assert all(event["step"] <= step - SPIKE["rewind_steps"] for event, step in zip(rewinds, POISONED, strict=True))
    state = read_checkpoint_header(newest(directory)).state
    assert SkippedData.from_json(state["loop"]["skipped"]) == left_out()[1]
    assert state["loop"]["rewinds"] == 2


def test_it_equals_the_run_that_never_read_the_poisoned_data(runs):
    folder, _ = runs
    one, other = (folder / name / "run" for name in ("rewound", "stated"))
    assert losses(one) == losses(other), "bit for bit"
    assert losses(one).keys() == set(range(1, STEPS + 1))
    first, second = (read_tensors(verify_checkpoint(newest(run))) for run in (one, other))
    pairs = zip(first, second, strict=True)
    assert all(name == again and a.equal(b) for (name, a), (again, b) in pairs)


def fed(seen, rank, directory):
    """Return the tokens that a rank fed to its engine at each step, the last time that it took the step."""
    back = {
        spike["step"]: rewind["step"]
        for spike, rewind in zip(events(directory, "spike"), events(directory, "rewind"), strict=True)
    }
    taken, step = {}, 0
    for line in seen["ranks"][rank]:
        step += 1
        taken[step] = line["tokens"]
        step = back.pop(step, step)  # each spike occurs once
    return taken


def audit(capsys, *words):
    """Return the JSON lines that `data audit` prints, parsed."""
    assert main(["data", "audit", *map(str, words), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_audit_names_what_each_rank_read_at_every_step(runs, poisoned, capsys):
    folder, seen = runs
    prefix, data = poisoned
    directory = folder / "rewound" / "run"
    sources = audit(capsys, directory, "--steps", f"1-{STEPS}")
    file = data.files[0].tokens
    told = {}
    for source in sources:
        assert {part["file"] for part in source["documents"]} == {f"{prefix}.bin"}
        starts = [file.document_start(part["document"]) + part["offset_tokens"] for part in source["documents"]]
        pieces = [file.read(at, at + part["n_tokens"]) for at, part in zip(starts, source["documents"], strict=True)]
        assert starts[0] == source["first_token"]
        told.setdefault((source["step"], source["data_rank"]), []).append(np.concatenate(pieces).tolist())
    assert told == {
        (step, rank): rows for rank in (0, 1) for step, rows in fed(seen["rewound"], rank, directory).items()
    }
    assert len(sources) == samples_seen(STEPS)
    positions = [source["position"] for source in sources]
    assert positions == left_out()[1].positions(0, len(sources)).tolist()


def test_audit_of_one_rank_of_positions_and_as_text(runs, capsys):
    directory = runs[0] / "rewound" / "run"
    whole = audit(capsys, directory, "--step", 40)
    assert audit(capsys, directory, "--step", 40, "--rank", 1) == whole[4:]
    halves = audit(capsys, directory, "--step", 40, "--rank", "3/4")
    assert [source["sequence"] for source in halves] == [6, 7]
    first, stop = left_out()[1].spans[0]
    edge = audit(capsys, directory, "--positions", f"{first - 1}-{first}")
    assert [(source["step"], source["sample"]) for source in edge] == [(25, samples_seen(25) - 1), (None, None)]
    assert main(["data", "audit", str(directory), "--step", "40", "--text"]) == 0
    shown = capsys.readouterr().out
    assert f"skipped: positions {first} to {stop - 1} (the loss spike at step 30)" in shown
    assert "step 40: 8 sequences of 64 tokens, positions" in shown
    assert f"to skip these: data.skip = [[{whole[0]['position']}, {whole[-1]['position'] + 1}]]" in shown
    assert str(whole[0]["documents"][0]["document"]) in shown
    assert main(["data", "audit", str(directory), "--step", "40", "--train.total_tokens", "100000"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step", "65"], "step 65 is after the end of the run: train.total_tokens = .* are 64 steps"),
        (["--step", "0"], "--step 0 is invalid: must be a whole number of at least 1"),
        (["--steps", "5-3"], "--steps 5-3 is invalid: must be A-B"),
        (
            ["--step", "4", "--rank", "2"],
            r"--rank 2 is invalid: must be R or R/N with 0 <= R < N, the number of data ranks \(2\)",
        ),
        (["--step", "4", "--rank", "0/3"], "step 4 has .* sequences, not divisible by 3 data ranks"),
        (
            ["--step", "4", "--data.train", '[{ path = "/nowhere/train" }]'],
            "/nowhere/train.idx: no such .* name it with --data.train",
        ),
        (["--step", "4", "--data.seq_len", "32"], "the data differ from those of .*seq_len was 64 and is now 32"),
    ],
)
def test_errors_of_audit_are_one_line(runs, capsys, words, message):
    assert main(["data", "audit", str(runs[0] / "rewound" / "run"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line


def test_audit_of_a_folder_without_a_run(tmp_path, capsys):
    assert main(["data", "audit", str(tmp_path), "--step", "1"]) == 2
    assert f"{tmp_path}: no config.json, so no run was started there" in capsys.readouterr().err


def loop_state(run_directory):
    return read_checkpoint_header(newest(run_directory)).state["loop"]


@pytest.mark.rehearse
def test_rewinds_repeat_exactly_also_if_killed_on_other_layouts_and_up_to_the_limit(
    runs, poisoned, tiny_corpus, watched_ranks, tmp_path
):
    """Killed in the first spike before it is found (resumed from step 28), and soon after the rewind to step 24."""
    reference = runs[0] / "rewound" / "run"
    make = functools.partial(run, folder=tmp_path, corpus=tiny_corpus, prefix=poisoned[0])
    killed = tmp_path / "killed"
    plan = [
        make("again"),
        make("limited", spike={"spike.max_rewinds": 1}),
        make("killed_1", directory=killed, kill={"rank": 1, "call": 31}),
        make("killed_2", directory=killed, kill={"rank": 0, "call": 4 + 3}),
        make("killed_3", directory=killed),
        make("tensor", spike={"parallel.tensor": 2}),
        make("pipeline", spike={"parallel.pipeline": 2}),
    ]
    seen = watched_ranks.launch(tmp_path, plan, timeout_s=250 * len(plan))
    statuses = {name: one["status"] for name, one in seen.items()}
    assert {name for name, status in statuses.items() if status != [0, 0]} == {"killed_1", "killed_2"}, seen
    for directory in (tmp_path / "again" / "run", killed):
        assert losses(directory) == losses(reference)
        assert loop_state(directory) == loop_state(reference)
    assert [event["step"] for event in events(killed, "rewind")] == [24, 44]
    assert any("resumed from" in event["text"] and event["step"] == 28 for event in events(killed, "resumed"))
    assert any("resumed from" in event["text"] and event["step"] == 24 for event in events(killed, "resumed"))
    for axis in ("tensor", "pipeline"):
        directory = tmp_path / axis / "run"
        assert loop_state(directory)["skipped"] == loop_state(reference)["skipped"], "the same decisions"
        expected = losses(reference)
        assert all(abs(loss / expected[step] - 1) < 1e-4 for step, loss in losses(directory).items())
    limited = tmp_path / "limited" / "run"
    assert len(events(limited, "rewind")) == 1
    assert len(events(limited, "spike")) == 2
    (refused,) = events(limited, "rewind_refused")
    assert "spike.max_rewinds = 1" in refused["text"]
    assert loop_state(limited)["skipped"] == loop_state(reference)["skipped"][:1]
    same = range(1, POISONED[1] - SPIKE["rewind_steps"] + 1)  # the steps after these read other positions
    assert [losses(limited)[step] for step in same] == [losses(reference)[step] for step in same]
