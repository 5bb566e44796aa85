"""What a finished demo is; tests/launch/commands/test_demo.py runs commands."""

import json

from launch.config.run_config import read_run_config
from launch.demos.commands import is_finished


def test_a_demo_is_finished_when_it_has_seen_all_tokens(tmp_path):
    config = read_run_config("demo", ["--run.directory", str(tmp_path)])
    assert not is_finished(config)
    for tokens, finished in ((config.train.total_tokens - 1, False), (config.train.total_tokens, True)):
        (tmp_path / "train_summary.json").write_text(json.dumps({"tokens_seen": tokens}))
        assert is_finished(config) is finished
    (tmp_path / "train_summary.json").write_text("{")
    assert not is_finished(config)
