"""A mistake in a recipe or on the command line gives one line before any rank joins another, and nothing is written.

A resume names every setting that has changed."""

import json

import pytest
import torch.distributed as dist

from gpt.errors import ConfigError
from launch.config.run_config import read_run_config
from launch.main import main
from launch.training.resume import find_start

BIG = 2**40
# Overrides of a valid recipe, and the parts of the line: the key, its value, the rule, and the nearest valid value.
CASES = [
    # Unknown keys, and values of the wrong type.
    ("--model.n_layer 3", "model.n_layer: unknown key 'n_layer'; use model.n_layers"),
    ("--trian.total_tokens 3", "trian: unknown key 'trian'; did you mean 'train'?"),
    ("--optimizer.lr 1e-3", "optimizer.lr: unknown key 'lr'; use optimizer.learning_rate"),
    ("--checkpoint.every_token 5", "checkpoint.every_token: unknown key", "did you mean 'every_tokens'?"),
    ("--faults.on_damage_data skip", "faults.on_damage_data: unknown key", "did you mean 'on_damaged_data'?"),
    ("--spike.actoin rewind", "spike.actoin: unknown key", "did you mean 'action'?"),
    ("--health.hang_timeout 3", "health.hang_timeout: unknown key", "did you mean 'hang_timeout_s'?"),
    ("--train.total_tokens many", "train.total_tokens = 'many' is invalid: must be a whole number"),
    ("--train.total_tokens 1.5", "train.total_tokens = 1.5 is invalid: must be a whole number"),
    ("--model.bias 1", "model.bias = 1 is invalid: must be true or false"),
    ("--model.bias yes", "model.bias = 'yes' is invalid: must be true or false"),
    ("--optimizer.learning_rate fast", "optimizer.learning_rate = 'fast' is invalid: must be a number"),
    ("--optimizer.learning_rate nan", "optimizer.learning_rate = nan is invalid: must be a number above 0"),
    ("--parallel.precision fp16", "parallel.precision = 'fp16'", "did you mean 'bf16'?"),
    ("--spike.action rewound", "spike.action = 'rewound'", "did you mean 'rewind'?"),
    ("--faults.on_damaged_data ignore", "faults.on_damaged_data = 'ignore' is invalid: must be one of stop, skip"),
    ("--metrics.wandb onlin", "metrics.wandb = 'onlin' is invalid: must be one of offline,", "did you mean 'online'?"),
    ("--run.device gpu", "run.device = 'gpu' is invalid: must be one of auto, cpu, cuda"),
    ("--data.train corpus/train", "data.train = 'corpus/train' is invalid: must be a list"),
    ("--model 3", "unrecognized arguments: --model 3", "`triaxial train --help`"),
    ("--nproc many", "argument --nproc: invalid int value: 'many'"),
    ("--model.n_layers", "--model.n_layers has no value"),
    ("--model.n_layers.x 3", "'n_layers' is a value, not a section"),
    # Numbers out of range.
    ("--model.n_layers 0", "model.n_layers = 0 is invalid: must be at least 1"),
    ("--model.d_model -32", "model.d_model = -32 is invalid: must be at least 1"),
    ("--data.seq_len 0", "seq_len = 0 tokens is invalid: must be at least 1"),
    ("--optimizer.beta2 1.0", "optimizer.beta2 = 1.0 is invalid: must lie in [0, 1)"),
    ("--optimizer.weight_decay -1", "optimizer.weight_decay = -1.0 is invalid: must not be negative"),
    ("--train.total_tokens 0", "train.total_tokens = 0 is invalid: must be at least 1"),
    ("--train.stop_after_s 0", "train.stop_after_s = 0.0 is invalid: must be a number of seconds above 0"),
    ("--train.target_loss 3", "train.target_loss needs train.evaluate_every_tokens"),
    ("--train.sample_every_tokens 512", "train.sample_new_tokens = 64 is invalid"),
    ("--train.z_loss 2", "train.z_loss = 2.0 is invalid: must be from 0 to 1"),
    ("--schedule.warmup_tokens -1", "schedule.warmup_tokens = -1 is invalid: must not be negative"),
    ("--schedule.decay_tokens 100", "decay_tokens = 100 is invalid: must be more than schedule.warmup_tokens = 1024"),
    ("--schedule.shape wsd", "schedule.cooldown_tokens is missing with schedule.shape = 'wsd'"),
    ("--metrics.log_every_steps 0", "metrics.log_every_steps = 0 is invalid: must be at least 1"),
    ("--run.seed -1", "run.seed = -1 is invalid: must be from 0"),
    ("--run.collective_timeout_s 0", "run.collective_timeout_s"),
    ("--run.peak_flops_per_s -5", "run.peak_flops_per_s = -5 is invalid: must be a number above 0"),
    ("--checkpoint.every_tokens 0", "checkpoint.every_tokens = 0 is invalid: must be at least 1"),
    ("--checkpoint.keep_last 0", "checkpoint.keep_last = 0 is invalid: must be at least 1"),
    ("--checkpoint.max_failures -2", "checkpoint.max_failures = -2 is invalid: must be at least 1"),
    ("--checkpoint.keep_every_tokens 3000", "must be a multiple of checkpoint.every_tokens = 2048; the nearest"),
    ("--checkpoint.fast_every_tokens 5", "checkpoint.fast_directory and checkpoint.fast_every_tokens belong together"),
    ("--faults.max_skipped_steps -1", "faults.max_skipped_steps = -1 is invalid: must not be negative"),
    ("--faults.max_damaged_samples 0", "faults.max_damaged_samples = 0 is invalid: must be at least 1"),
    ("--spike.window_steps 4", "spike.window_steps = 4 is invalid: must be at least 8"),
    ("--spike.skip_steps 50", "spike.skip_steps = 50", "at least spike.rewind_steps + spike.patience_steps = 103"),
    ("--spike.action rewind", "spike.rewind_steps + spike.patience_steps = 103", "use checkpoint.keep_last = 27"),
    ("--health.hang_timeout_s 0.5", "health.hang_timeout_s = 0.5 is invalid: must be at least 1 second"),
    ("--health.hang_timeout_s 900", "health.hang_timeout_s = 900", "must be below run.collective_timeout_s = 600"),
    ("--health.saving_timeout_s 5", "health.saving_timeout_s = 5", "must be at least health.hang_timeout_s = 300"),
    ("--health.straggler_every_steps -1", "health.straggler_every_steps = -1", "must be at least 1, or 0 for never"),
    ("--data.skip [[9,3]]", "data.skip: [9, 3] must be [first, stop] with 0 <= first < stop"),
    ("--checkpoint.fast_directory /tmp", "belong together"),
    # Settings that contradict each other.
    ("--model.n_heads 3", "model.d_model = 32 does not divide into model.n_heads = 3", "nearest", "2 or 4"),
    ("--data.seq_len 128", "data.seq_len = 128", "model.n_ctx = 64"),
    ("--batch.global_batch_tokens 500", "batch.global_batch_tokens = 500", "512"),
    ("--batch.micro_batch_size 3", "micro_batch_size = 3 is invalid", "Use batch.micro_batch_size = 2 or 4"),
    ("--batch.ramp_initial_tokens 128", "batch.ramp_initial_tokens = 128 without batch.ramp_tokens"),
    ("--parallel.tensor 2", "parallel.tensor 2", "does not divide the 1 process"),
    ("--nproc 3 --parallel.tensor 3", "model.n_heads = 2", "parallel.tensor = 3"),
    ("--nproc 5 --parallel.pipeline 5", "model.n_layers = 2", "5 pipeline stages"),
    ("--nproc 2 --parallel.pipeline 2 --parallel.split [1,2]", "parallel.split = [1, 2]", "adds up to 3"),
    ("--nproc 3", "batch.global_batch_tokens"),
    ("--model.vocab_size 256", "model.vocab_size = 256", "set model.vocab_size = 512"),
    # Missing files.
    ("--data.tokenizer /nowhere/t.model", "/nowhere/t.model"),
    ('--data.train [{path="/nowhere/train"}]', "/nowhere/train.idx: no such token file"),
    ('--data.train [{path="/nowhere/train",weigth=2}]', "data.train[0].weigth: unknown key", "did you mean 'weight'?"),
    ('--data.train [{path="/nowhere/train",weight=-2}]', "weight = -2.0 is invalid: must be a finite number > 0"),
    ("--data.train []", "data.train is empty"),
    ("--run.directory /proc/nothing/run", "run.directory = /proc/nothing/run cannot be created"),
    ("--run.directory /dev/null", "/dev/null/checkpoints: not a directory"),
    # The command itself.
    ("--resume", "--resume, but", "contains no checkpoint"),
    ("--nproc 0", "--nproc 0 is invalid: must be at least 1"),
    ("--max-restarts 2", "--max-restarts needs --nproc"),
    ("--nproc 1 --max-restarts -1", "--max-restarts -1 is invalid: must be 0 or more"),
]  # fmt: skip


@pytest.fixture
def said(tiny_corpus, tmp_path, capsys):
    """Run the command with overrides; returns its one line of error. Checks that it wrote nothing."""

    def run(words, directory=None):
        before = sorted(tmp_path.rglob("*"))
        common = ["train", str(tiny_corpus.recipe), "--run.directory", str(directory or tmp_path / "run")]
        common += ["--metrics.wandb", "disabled"] if "--metrics.wandb" not in words else []
        status = main([*common, *words])
        shown, line = capsys.readouterr()
        assert status == 2, (shown, line)
        assert shown == ""
        assert line.startswith("triaxial: error: ")
        assert line.count("\n") == 1, line
        assert not dist.is_initialized(), "reported before any rank joins another"
        assert sorted(tmp_path.rglob("*")) == before, "nothing is written"
        return line

    return run


@pytest.mark.parametrize(("words", "parts"), [(case[0], case[1:]) for case in CASES], ids=[case[0] for case in CASES])
def test_a_mistake_is_one_line_that_names_it(said, words, parts):
    line = said(words.split(" "))
    assert all(part in line for part in parts), line


@pytest.fixture(scope="module")
def trained(tiny_corpus, tmp_path_factory):
    """The directory of a run of four steps."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    words = ["train", str(tiny_corpus.recipe), "--run.directory", str(directory), "--metrics.wandb", "disabled"]
    assert main([*words, "--train.total_tokens", "2048", "--run.peak_flops_per_s", "1e12"]) == 0
    return directory


RESUMED = [
    ("--model.n_layers 3", "was saved with another configuration (model.n_layers: 2 -> 3). Restore"),
    ("--model.tied false", "model.tied: True -> False"),
    ("--batch.global_batch_tokens 1024", "batch.global_batch_tokens: 512 -> 1024"),
    ("--run.seed 5", "was trained on other data", "the seed was 3 and is now 5"),
    ("--data.seq_len 32", "seq_len was 64 and is now 32"),
    ('--data.train [{path="VALIDATION",name="train"}]', "the number of tokens of corpus 'train' was"),
    ('--data.train [{path="TRAIN",name="web"}]', "corpus 'train' is gone; corpus 'web' is new"),
    ("--data.skip [[3,9]]", "data.skip leaves out position 3, but the run has read it at step 1"),
    ("--no-resume", "--no-resume, but", "contains the checkpoint step-000000004"),
]


@pytest.mark.parametrize(("words", "parts"), [(case[0], case[1:]) for case in RESUMED], ids=[c[0] for c in RESUMED])
def test_another_run_is_no_resume(said, trained, tiny_corpus, words, parts):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    for split in ("train", "validation"):
        words = words.replace(split.upper(), str(tiny_corpus.folder / split))
    line = said(words.split(" "), trained)
    assert all(part in line for part in parts), line
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_no_resume_is_also_refused_by_all_ranks_together(tiny_corpus, trained):
    """On several nodes, only the ranks on the node of the failed rank know that this start is a restart."""
    config = read_run_config(str(tiny_corpus.recipe), ["--run.directory", str(trained)])
    with pytest.raises(ConfigError, match=r"--no-resume, but .* contains the checkpoint step-000000004"):
        find_start(config, {}, resume=False)


def test_a_resume_lists_the_settings_that_have_changed(tiny_corpus, trained, capsys):
    words = ["train", str(tiny_corpus.recipe), "--run.directory", str(trained), "--metrics.wandb", "disabled"]
    words += ["--train.total_tokens", "2560", "--run.peak_flops_per_s", "1e12", "--faults.on_damaged_data", "skip"]
    assert main([*words, "--optimizer.learning_rate", "1e-3"]) == 0
    expected = {
        "changed since the checkpoint: faults.on_damaged_data: stop -> skip",
        "changed since the checkpoint: optimizer.learning_rate: 0.003 -> 0.001",
        "changed since the checkpoint: train.total_tokens: 2048 -> 2560",
    }
    assert {line for line in capsys.readouterr().out.splitlines() if line.startswith("changed since")} == expected
    events = [json.loads(line) for line in (trained / "events.jsonl").read_text().splitlines()]
    assert {event["text"] for event in events if event["kind"] == "setting_changed"} == expected
    state = json.loads((trained / "checkpoints" / "step-000000005" / "state.json").read_text())
    assert state["config"]["optimizer"]["learning_rate"] == 1e-3
