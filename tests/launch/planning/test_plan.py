"""Parts of `triaxial plan` that the command's own test does not reach."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from launch.config.run_config import read_run_config
from launch.planning.plan import chosen, numbers_that_fit, option_of
from launch.planning.plan_figures import figures
from launch.planning.plan_files import sbatch_text
from launch.planning.plan_page import plan_page
from launch.planning.plan_report import PlannedLayout, knee_of, layout_table, memory_table, rejected_lines
from launch.planning.plan_request import check_amounts, gpus_here, notes_on_adapter
from launch.planning.plan_scatter import PlanPoint, scatter
from launch.planning.validate import validate
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.planner.choice.candidates import PlanRequest
from parallel.planner.choice.ranking import rank_layouts
from parallel.planner.hardware.tables import Cluster, read_hardware

HARDWARE = read_hardware()
MODEL = ModelConfig(vocab_size=50257, n_ctx=2048, n_layers=12, d_model=768, n_heads=12)
CLUSTER = Cluster(HARDWARE.gpus["H100"], HARDWARE.networks["400G"], 8)
REQUEST = PlanRequest(MODEL, BatchConfig(1, 2**19), 2048, ParallelConfig(), CLUSTER, HARDWARE.stacks["triaxial"])


@pytest.fixture(scope="module")
def found():
    rankings = [rank_layouts(REQUEST, gpus, keep=2) for gpus in (2, 4)]
    return [
        (
            ranking,
            [PlannedLayout(each, figures(each, REQUEST, total_tokens=10**10, price=2.0)) for each in ranking.layouts],
        )
        for ranking in rankings
    ]


def test_the_interval_of_checkpoints_is_youngs(found):
    ranked = found[0][0].layouts[0]
    run = figures(ranked, REQUEST, total_tokens=10**10, save_s=50.0, failure_hours=1.0)
    assert run.failure_every_s == 3600
    assert run.checkpoint_every_s == pytest.approx((2 * 50 * 3600) ** 0.5)
    assert run.lost == pytest.approx(2 * 50 / run.checkpoint_every_s)
    assert run.cost is None


def test_a_deadline_takes_the_cheapest_that_meets_it(found):
    cheapest = min((each for _, layouts in found for each in layouts), key=lambda each: each.run.cost)
    assert chosen(found, 10**9) is cheapest
    assert chosen(found, None) is found[-1][1][0]
    with pytest.raises(ConfigError, match=r"--deadline 1h is invalid: .*Use at least"):
        chosen(found, 1.0, text="1h")


def test_tables_and_page(found, tmp_path):
    planned = found[-1][1]
    assert len(layout_table(planned, REQUEST)) == len(memory_table(planned)) == 3
    curve = [layouts[0] for _, layouts in found]
    page = plan_page("<plan>", found, REQUEST, knee=knee_of(curve))
    assert "&lt;plan&gt;" in page
    assert page.count("<svg") == 3
    assert scatter([PlanPoint(1, 1, "a"), PlanPoint(2, 2, "b", best=True)], label="x").count("<circle") == 2
    script = sbatch_text(tmp_path / "r.toml", script=tmp_path / "planned.sbatch", nodes=16, gpus_per_node=8)
    assert "--nodes=16" in script
    assert f"#     sbatch {tmp_path}/planned.sbatch [--section.key VALUE ...]\n" in script
    assert "gpt3_1.3b" not in script
    assert "train.sbatch" not in script


def test_faults():
    with pytest.raises(ConfigError, match="name the GPUs once"):
        option_of(SimpleNamespace(gpus="1xH100", here=True))
    amounts = {"price_per_gpu_hour": None, "save_seconds": -1.0, "node_hours_between_failures": None}
    with pytest.raises(ConfigError, match="--save-seconds -1 is invalid"):
        check_amounts(SimpleNamespace(**amounts, nodes_of=None, keep=1))
    with pytest.raises(ConfigError, match="cannot be read"):
        validate(Path("/nowhere.csv"), HARDWARE)
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no GPU that torch sees"):
            gpus_here()


def test_a_number_of_gpus_without_a_layout_names_those_that_have_one():
    nothing = [(rank_layouts(REQUEST, 127, keep=1), [])]
    assert nothing[0][0].layouts == ()
    near = partial(numbers_that_fit, REQUEST)
    with pytest.raises(
        ConfigError, match=r"no layout of 127 GPUs divides this model and its batch. Use \d+ or 128 GPUs"
    ):
        chosen(nothing, None, fitting_near=near)


def test_rejected_layouts_take_few_lines(found):
    ranking = found[-1][0]
    lines = rejected_lines(ranking, most=1)
    assert len(lines) == 3
    assert lines[-1].endswith("other rules; --rejected shows them, --json lists all")
    assert len(rejected_lines(ranking, most=99)) == 2 * len(ranking.rejected)


def test_a_plan_says_that_it_does_not_model_adapters():
    assert notes_on_adapter(read_run_config("gpt3_125m", [])) == []
    (note,) = notes_on_adapter(read_run_config("gpt3_125m", ["--adapter.rank", "8"]))
    assert note.startswith("note: planned as if the whole model trained")
