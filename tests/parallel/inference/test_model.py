"""Generation over layouts gives the tokens of one process, and does not affect the training that follows."""

import pytest
from layout_runs import (
    LAUNCH_TIMEOUT_S,
    MODERN,
    TALKATIVE,
    assert_same_continuations,
    largest_difference,
    launch,
    run_of,
)

pytestmark = pytest.mark.timeout(LAUNCH_TIMEOUT_S + 30)
GENERATING = {
    "tensor 2 x pipeline 2": (4, {"tensor": 2, "pipeline": 2}),
    "tensor 4": (4, {"tensor": 4}),
    "tensor 2 x data 2, zero 3, recompute": (4, {"tensor": 2, "data": 2, "zero_stage": 3, "recompute": "full"}),
    "data 2, zero 3": (2, {"data": 2, "zero_stage": 3}),
    "pipeline 2 x data 2, zero 3": (4, {"pipeline": 2, "data": 2, "zero_stage": 3}),
    "a rank with only the head": (2, {"pipeline": 2, "split": [4, 0]}),
    "two stages per rank, interleaved": (2, {"pipeline": 2, "schedule": "interleaved_1f1b"}),
    "two stages per rank, V-shaped": (2, {"pipeline": 2, "schedule": "zbv_zero_bubble"}),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    runs = []
    for family, model in (("gpt3", TALKATIVE), ("modern", {**MODERN, **TALKATIVE, "n_kv_heads": 1})):
        for name, (world_size, parallel) in {"one": (1, {}), **GENERATING}.items():
            generating = {"model": model, "steps": 2, "generate": True}
            runs.append(run_of(f"generate, {family}, {name}", world_size, parallel, **generating))
    return launch(tmp_path_factory.mktemp("generation"), runs, timeout_s=LAUNCH_TIMEOUT_S)


@pytest.mark.parametrize("name", GENERATING)
@pytest.mark.parametrize("family", ["gpt3", "modern"])
def test_generation_over_a_layout_equals_one_process(results, family, name):
    """Tokens, log-probabilities and stops are equal, for prompts of unequal lengths that stop at unequal times. So are
    the losses of the training that follows."""
    ours, reference = results[f"generate, {family}, {name}"], results[f"generate, {family}, one"]
    for way in ("greedy", "warm"):
        assert_same_continuations(ours[way], reference[way])
    assert all(token < TALKATIVE["vocab_size"] for tokens, _, _ in ours["warm"] for token in tokens), "never padding"
    assert len({len(tokens) for way in ("greedy", "warm") for tokens, _, _ in reference[way]}) > 1, "some stop early"
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-5


def test_a_rank_that_has_finished_beats_at_each_pass_of_another(results):
    """Under ZeRO 3 it lends its weights. Without a heartbeat the watchdog would take it for hung."""
    first, last = results["generate, modern, data 2, zero 3"]["beats"]
    assert first > 0
    assert last == 0
    assert results["generate, modern, tensor 4"]["beats"] == [0, 0, 0, 0]
