"""One rank of a run in this process: mistakes before it joins others, training, resuming, and what it reports."""

import json

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from gpt.errors import ConfigError
from gpt.telemetry.time_ledger import TimeLedger
from launch.config.run_config import read_run_config
from launch.processes.environment import ClusterEnvironment
from launch.processes.restarts import Restart
from launch.training.resume import known_restart
from launch.training.train_rank import prepare, run_rank

ALONE = ClusterEnvironment()


def config_of(tiny_corpus, run, *words):
    quiet = ["--metrics.wandb", "disabled", "--run.peak_flops_per_s", "1e12"]
    return read_run_config(tiny_corpus.recipe, ["--run.directory", str(run), *quiet, *map(str, words)])


def test_a_rank_trains_resumes_and_says_when_nothing_is_left(tiny_corpus, tmp_path, capsys):
    run, tier = tmp_path / "run", tmp_path / "disk"
    tier.mkdir()
    local = ["--checkpoint.fast_directory", tier, "--checkpoint.fast_every_tokens", 512]
    config = config_of(tiny_corpus, run, *local, "--train.total_tokens", 1024, "--run.deterministic", "true")
    assert run_rank(config, ALONE, resume=None) == 0
    summary = json.loads((run / "train_summary.json").read_text())
    assert (summary["step"], summary["ended"]) == (2, "total_tokens")
    assert len(summary["weights_sha256"]) == 64, "of a deterministic run"
    assert not list(tier.rglob("*.safetensors")), "a finished run needs no local tier"
    assert not dist.is_initialized()
    assert "model: " in capsys.readouterr().out

    longer = config_of(tiny_corpus, run, "--train.total_tokens", 1536)
    assert run_rank(longer, ALONE, resume=True) == 0
    assert "resumed from" in capsys.readouterr().out
    assert run_rank(longer, ALONE, resume=None) == 0
    assert "nothing left to train: step 3 has reached train.total_tokens" in capsys.readouterr().out
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if "loss" in line]
    assert sorted(set(steps)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("words", "resume", "message"),
    [
        (["--model.vocab_size", 100], None, "model.vocab_size = 100 is smaller"),
        (["--parallel.tensor", 2], None, "parallel.tensor"),
        (["--parallel.offload", "true"], None, "parallel.offload"),
        (["--parallel.attention", "math"], None, "parallel.attention = \"math\" with device 'cpu'"),
        (["--optimizer.frozen", '["embde.*"]'], None, r"optimizer\.frozen\[0\] = 'embde\.\*' is invalid"),
        ([], True, "--resume, but .* contains no checkpoint"),
    ],
)
def test_mistakes_are_found_before_ranks_wait_for_each_other(tiny_corpus, tmp_path, words, resume, message):
    config = config_of(tiny_corpus, tmp_path / "run", *words)
    with pytest.raises(ConfigError, match=message):
        prepare(config, ALONE, TimeLedger(None), resume=resume)
    assert not dist.is_initialized()
    assert not (tmp_path / "run").exists()


def test_what_is_prepared_goes_into_each_checkpoint(tiny_corpus, tmp_path):
    config = config_of(tiny_corpus, tmp_path / "run")
    prepared = prepare(config, ALONE, TimeLedger(None), resume=None)
    assert set(prepared.saved_state) == {"config", "data", "tokenizer"}
    assert json.dumps(prepared.saved_state), "it is JSON"
    assert (prepared.layout.world_size, prepared.device.type, prepared.reached) == (1, "cpu", 0)
    assert (prepared.sampler, prepared.probe) == (None, None)


def test_the_rank_that_knows_of_most_restarts_is_right():
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        assert known_restart(None) is None
        assert known_restart(Restart(2, 5, "rank 1 died")) == Restart(2, 5, "rank 1 died")
    finally:
        dist.destroy_process_group()
