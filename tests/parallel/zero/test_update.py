"""Updates of ZeRO that must not happen, and the calls around those that do, on one process."""

import json

import pytest
from deepspeed_ranks import watch_updates

from launch.processes.local_ranks import fork_server, run_ranks

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed; it comes with the extra 'deepspeed'")
pytestmark = pytest.mark.timeout(300)
CASES = [
    {"zero_stage": 1},
    {"zero_stage": 2},
    {"zero_stage": 3},
    {"zero_stage": 1, "precision": "bf16"},
    {"zero_stage": 2, "offload": True},
    {"zero_stage": 3, "offload": True},
]


def test_bad_gradients_change_nothing_and_constraints_hold(tmp_path):
    """The ranks' process asserts: DeepSpeed keeps state in its modules, so it is not loaded here."""
    context = fork_server(["deepspeed", "parallel.engines.deepspeed", "launch.processes.local_ranks"])
    run_ranks(context, watch_updates, [json.dumps(CASES), str(tmp_path)], nproc=1, logs=tmp_path / "logs")
