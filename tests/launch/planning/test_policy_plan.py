"""The plan of PPO and GRPO: parts of an iteration, other models, options, faults."""

import json
from dataclasses import asdict, replace

import pytest

from launch.config.run_config import as_dict, layout_of, read_run_config
from launch.main import main
from launch.planning.policy_plan import _peak, iteration, other_models, policy_plan
from parallel.planner.choice.candidates import PlanRequest
from parallel.planner.hardware.tables import Cluster, read_hardware
from parallel.planner.machine.measured_step import MeasuredMachine

HARDWARE = read_hardware()


def request_of(config):
    cluster = Cluster(HARDWARE.gpus["H100"], HARDWARE.networks["400G"], 8)
    stack = HARDWARE.stacks["triaxial-eager"]
    return PlanRequest(config.model, config.batch, config.data.seq_len, config.parallel, cluster, stack)


def test_an_iteration_has_rollouts_scores_and_updates():
    config = read_run_config("ppo_1.3b", [])
    request = request_of(config)
    found, lines = policy_plan(config, request, 16, keep=2)
    best = found[0]
    assert best.seconds == best.sampling + best.scoring + best.training <= found[1].seconds
    assert lines[1].startswith("reward reward_6b: 6,")
    others = other_models(config)
    assert [each.trains for each in others] == [False, False, True]
    without = read_run_config("ppo_1.3b", ["--objective.ptx", "[]"])
    fewer = iteration(without, request, best.layout, others)
    assert fewer.training < best.training
    assert (fewer.sampling, fewer.scoring) == (best.sampling, best.scoring)
    shorter = read_run_config("ppo_1.3b", ["--objective.max_response_tokens", "256"])
    assert iteration(shorter, request, best.layout, others).sampling < 0.5 * best.sampling
    rows = best.layout.job.data * best.layout.micro_batch_size
    assert config.objective.minibatch_episodes % rows == 0


def test_rollouts_on_a_cpu_hold_a_packed_copy_of_the_weights():
    config = read_run_config("ppo_1.3b", ["--objective.rollout_rows", "4096"])  # rollouts take more than updates
    on_gpus = request_of(config)
    on_cpus = replace(on_gpus, cluster=replace(on_gpus.cluster, machine=MeasuredMachine((), (), None, on_cpu=True)))
    layout = policy_plan(read_run_config("ppo_1.3b", []), on_gpus, 16, keep=1)[0][0].layout
    model = config.model
    for tensor, copied in (
        (1, model.n_layers * model.block_parameters + model.padded_vocab_size * model.d_model),
        (2, 0),
    ):
        split = replace(layout.layout, tensor=tensor, pipeline=1, split=(model.n_layers,))
        each = replace(layout, layout=split, parallel=replace(layout.parallel, tensor=tensor, precision="bf16"))
        more = _peak(config, on_cpus, each, ()) - _peak(config, on_gpus, each, ())
        assert more == 2 * copied


def test_the_size_of_a_run_that_is_there(tmp_path):
    small = read_run_config("gpt3_125m", [])
    (tmp_path / "config.json").write_text(json.dumps(as_dict(small)))
    config = read_run_config("ppo_1.3b", ["--objective.rewards", f'[{{ run = "{tmp_path}" }}]'])
    assert [asdict(each.model) for each in other_models(config)[1:]] == [asdict(small.model)] * 2


def test_the_command_writes_its_files(tmp_path, capsys):
    recipe, figures = tmp_path / "ppo.toml", tmp_path / "ppo.json"
    words = ["plan", "ppo_1.3b", "--gpus", "16xH100", "--keep", "1", "--price-per-gpu-hour", "2"]
    assert main([*words, "--write-recipe", str(recipe), "--json", str(figures)]) == 0
    assert "sampling" in capsys.readouterr().out
    (found,) = json.loads(figures.read_text())["layouts"]
    assert found["iteration_s"] == pytest.approx(sum(found[f"{k}_s"] for k in ("sampling", "scoring", "training")))
    assert layout_of(read_run_config(str(recipe), []), 16).world_size == 16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ppo_1.3b", "--gpus", "8xH100", "--html", "plan.html"], "--html with objective.kind = 'ppo' is invalid"),
        (["ppo_175b", "--gpus", "1xH100"], "no layout of 1 GPUs holds the policy"),
    ],
)
def test_faults_take_one_line(words, message, capsys):
    assert main(["plan", *words]) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert message in printed[-1]
    assert len(printed) == 1
