"""Every shipped recipe can be read, has the paper's sizes, and fits the number of GPUs that its comment names."""

import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from gpt.training.schedule import learning_rate
from launch.config.recipe import find_recipe
from launch.config.run_config import as_dict, changed_keys, from_dict, layout_of, read_run_config

# Table 2.1 of arXiv 2005.14165: parameters (millions), layers, width, heads, batch (tokens), learning rate. Two rows
# hold values that can be built: 16 heads for XL (24 printed), width 5120 for 13B (5140 printed).
PAPER = {
    "gpt3_125m": (125, 12, 768, 12, 0.5e6, 6.0e-4),
    "gpt3_350m": (350, 24, 1024, 16, 0.5e6, 3.0e-4),
    "gpt3_760m": (760, 24, 1536, 16, 0.5e6, 2.5e-4),
    "gpt3_1.3b": (1300, 24, 2048, 16, 1e6, 2.0e-4),
    "gpt3_2.7b": (2700, 32, 2560, 32, 1e6, 1.6e-4),
    "gpt3_6.7b": (6700, 32, 4096, 32, 2e6, 1.2e-4),
    "gpt3_13b": (13000, 40, 5120, 40, 2e6, 1.0e-4),
    "gpt3_175b": (175000, 96, 12288, 96, 3.2e6, 0.6e-4),
}


def test_all_eight_sizes_are_shipped():
    folder = Path(str(resources.files("launch"))) / "recipes"
    assert {path.stem for path in folder.glob("gpt3_*.toml")} == set(PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_has_the_papers_values(name):
    config = read_run_config(name, [])
    millions, layers, width, heads, batch, rate = PAPER[name]
    assert abs(config.model.parameters / 1e6 / millions - 1) < 0.03
    assert (config.model.n_layers, config.model.d_model, config.model.n_heads) == (layers, width, heads)
    assert abs(config.batch.global_batch_tokens / batch - 1) < 0.05
    assert config.optimizer.learning_rate == rate
    assert (config.optimizer.beta1, config.optimizer.beta2, config.optimizer.eps) == (0.9, 0.95, 1e-8)
    assert (config.optimizer.max_gradient_norm, config.optimizer.weight_decay) == (1.0, 0.1)
    assert config.train.total_tokens == 300e9
    assert (config.model.n_ctx, config.data.seq_len, config.model.vocab_size) == (2048, 2048, 50257)
    assert learning_rate(config.schedule, rate, 375_000_000) == rate
    assert learning_rate(config.schedule, rate, 260_000_000_000) == pytest.approx(rate / 10)


@pytest.mark.parametrize("name", [*PAPER, "c4_1.3b"])
def test_a_recipe_fits_the_cluster_in_its_comment(name):
    text = find_recipe(name).read_text()
    gpus, tensor, pipeline, data, micro = re.search(
        r"for ([\d,]+) GPUs.*tensor (\d+) x pipeline (\d+) x data (\d+).* (\d+) micro-batch(?:es)? a rank", text
    ).groups()
    layout = layout_of(read_run_config(name, []), int(gpus))
    assert (layout.tensor, layout.pipeline, layout.data, layout.micro_batches) == tuple(
        map(int, (tensor, pipeline, data, micro))
    )


def test_validation_metrics_name_their_corpus():
    """A corpus has the last part of its path as its name: `validation`, unless the recipe gives another."""
    folders = (find_recipe("demo").parent, Path(__file__).parents[3] / "docs" / "tutorials")
    texts = {path.name: path.read_text() for folder in folders for path in sorted(folder.glob("*.*"))}
    unnamed = re.compile(r'^validation = .*path = "[^"]*/validation"(?!, name = )', re.MULTILINE)
    assert [name for name, text in texts.items() if unnamed.search(text)] == []
    assert [name for name, text in texts.items() if "validation/validation" in text] == []


def test_the_demo_fits_four_processes():
    assert layout_of(read_run_config("demo", []), 4).world_size == 4


def test_a_configuration_round_trips_through_json():
    config = read_run_config("gpt3_125m", ["--parallel.data_shard", "8", "--run.peak_flops_per_s", "1e12"])
    assert from_dict(as_dict(config)) == config


def test_changed_keys_name_both_values():
    assert changed_keys({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}, "d": 4}) == ["a.b: 1 -> 3", "d: None -> 4"]


def test_an_unknown_recipe_lists_the_shipped_ones():
    with pytest.raises(ConfigError, match="did you mean 'gpt3_125m'"):
        read_run_config("gpt3_120m", [])


def test_a_recipe_is_read_without_torch():
    """The launcher of local ranks and `triaxial config` need no more, and torch takes seconds to load."""
    code = (
        "import sys, launch.commands.config, launch.commands.train\n"
        "from launch.config.run_config import layout_of, read_run_config\n"
        "layout_of(read_run_config('demo', []), 4)\nprint('torch' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, timeout=60)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--parallel.tensor", "2"], 'parallel.tensor = 2 is invalid with parallel.engine = "deepspeed"'),
        (["--parallel.zero_stage", "0"], 'parallel.zero_stage = 0 is invalid with parallel.engine = "deepspeed"'),
    ],
)
def test_a_layout_that_the_engine_lacks_is_refused_when_the_recipe_is_read(words, said):
    with pytest.raises(ConfigError) as error:
        read_run_config("gpt3_125m", ["--parallel.engine", "deepspeed", "--parallel.compile", "false", *words])
    assert said in str(error.value)
    assert 'or parallel.engine = "native"' in str(error.value)


def test_an_engine_of_another_version_is_refused_before_any_process_starts(tmp_path, monkeypatch):
    info = tmp_path / "deepspeed-0.18.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.18.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = read_run_config("gpt3_125m", ["--parallel.engine", "deepspeed", "--parallel.compile", "false"])
    with pytest.raises(ConfigError, match=r"deepspeed 0\.18\.0 computed wrong gradients"):
        layout_of(config, 1)
