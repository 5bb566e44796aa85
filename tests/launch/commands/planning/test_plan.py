"""`triaxial plan` end to end: tables, JSON, page, recipe, Slurm script, and faults in one line."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from launch.config.run_config import layout_of, read_run_config
from launch.main import main
from launch.planning.plan_request import parse_deadline, parse_gpus
from parallel.engines.capabilities import check_engine
from parallel.layout.config import ParallelConfig
from parallel.planner import published

ROWS = Path(published.__file__).parent / "runs.csv"
SMALL = ["plan", "gpt3_125m", "--gpus", "8xH100"]


def test_a_plan_with_every_file(tmp_path, capsys):
    files = {name: tmp_path / f"plan.{name}" for name in ("json", "html", "toml", "sbatch")}
    words = [*SMALL, "--price-per-gpu-hour", "2.5", "--deadline", "30d", "--json", str(files["json"])]
    words += ["--html", str(files["html"]), "--write-recipe", str(files["toml"])]
    assert main([*words, "--write-sbatch", str(files["sbatch"])]) == 0
    printed = capsys.readouterr().out
    assert "layouts fit" in printed
    assert "rejected:" in printed
    (found,) = json.loads(files["json"].read_text())["plans"]
    times = [each["step_s"] for each in found["layouts"]]
    assert times == sorted(times)
    best = found["layouts"][0]
    assert sum(best["parts_s"].values()) == pytest.approx(best["step_s"])
    assert best["run"]["cost"] == pytest.approx(2.5 * 8 * best["run"]["seconds"] / 3600)
    config = read_run_config(str(files["toml"]), [])
    assert layout_of(config, 8).world_size == 8
    assert config.batch.micro_batch_size == best["micro_batch_size"]
    assert config.parallel.zero_stage == best["parallel"]["zero_stage"]
    script = files["sbatch"].read_text()
    assert "#SBATCH --nodes=1\n" in script
    assert f'set -- {files["toml"]} "$@"' in script
    subprocess.run(["bash", "-n", files["sbatch"]], check=True)
    page = files["html"].read_text()
    assert "Where a step goes" in page
    assert "Rejected layouts" in page
    assert not re.search(r"<script|src=|https?://(?!www\.w3\.org)", page)


@pytest.mark.parametrize("option", ["--write-recipe", "--write-sbatch"])
def test_a_file_of_somebody_else_is_not_written_over(option, tmp_path, capsys):
    mine = tmp_path / "mine.toml"
    mine.write_text("[model]\n# my own recipe, written by hand\n")
    assert main([*SMALL, "--keep", "1", option, str(mine)]) == 2
    said = capsys.readouterr().err
    assert f"{option} {mine} is invalid: the file is there, and {option} did not write it. Use another name" in said
    assert "by hand" in mine.read_text()
    planned = tmp_path / "planned"
    for _ in range(2):  # its own file it writes again
        assert main([*SMALL, "--keep", "1", option, str(planned)]) == 0
    other = {"--write-recipe": "--write-sbatch", "--write-sbatch": "--write-recipe"}[option]
    assert main([*SMALL, "--keep", "1", other, str(planned)]) == 2


def test_a_range_of_gpus_gives_a_curve_with_its_knee(tmp_path, capsys):
    page = tmp_path / "plan.html"
    assert main(["plan", "gpt3_2.7b", "--gpus", "8..32xA100-80G", "--html", str(page), "--network", "100G"]) == 0
    assert "(knee)" in capsys.readouterr().out
    assert "Plan of gpt3_2.7b<" in page.read_text()
    assert "More GPUs" in page.read_text()


def test_the_layout_of_the_recipe(capsys):
    assert main([*SMALL, "--layout", "--parallel.tensor", "2"]) == 0
    printed = capsys.readouterr().out
    assert "tensor=2,data=4" in printed
    assert "8 GPUs: the recipe's layout\n" in printed
    assert "rejected" not in printed


@pytest.mark.parametrize("engine", ["deepspeed", "megatron"])
def test_every_layout_of_another_engine_is_one_that_it_takes(engine, tmp_path, capsys):
    recipe, report = tmp_path / "planned.toml", tmp_path / "plan.json"
    words = ["--engine", engine, "--keep", "40", "--write-recipe", str(recipe), "--json", str(report)]
    assert main([*SMALL, "--parallel.compile", "true", *words]) == 0
    printed = capsys.readouterr().out
    assert f"note: --engine {engine} does not take parallel.compile: planned without" in printed
    assert f"stack {'megatron-core' if engine == 'megatron' else 'triaxial-eager'}" in printed
    assert read_run_config(str(recipe), []).parallel.engine == engine
    layouts = json.loads(report.read_text())["plans"][0]["layouts"]
    assert len(layouts) > 20
    for each in layouts:
        check_engine(ParallelConfig(**each["parallel"]), model=read_run_config("gpt3_125m", []).model)


def test_rows_of_rankings_may_exceed_the_context(capsys):
    words = ["--objective.kind", "reward", "--data.sampling", "document", "--data.seq_len", "4096"]
    assert main([*SMALL, "--model.n_ctx", "2048", *words]) == 0
    assert "layouts fit" in capsys.readouterr().out


def test_validation_of_published_rows(tmp_path, capsys):
    rows = tmp_path / "rows.csv"
    rows.write_text("\n".join(ROWS.read_text().splitlines()[:8]) + "\n")
    assert main(["plan", "--validate", str(rows), "--json", str(tmp_path / "found.json")]) == 0
    assert "blind: 7 rows" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "found.json").read_text())["rows"]) == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gpt3_125m", "--gpus", "8xH10O"], "GPU 'H10O' is unknown: did you mean 'H100'"),
        (["gpt3_125m", "--gpus", "8xH100", "--network", "401G"], "network '401G' is unknown: did you mean '400G'"),
        (["gpt3_125m", "--gpus", "8xH100", "--stack", "torchtitn"], "stack 'torchtitn' is unknown"),
        (["gpt3_125m", "--gpus", "H100"], "write NUMBERxNAME"),
        (["gpt3_125m", "--gpus", "64..8xH100"], "the smaller first. Use 8..64xH100"),
        (["gpt3_125m"], "name the GPUs once"),
        ([], "the recipe is missing"),
        (["gpt3_125m", "--gpus", "8xH100", "--deadline", "1h"], "--deadline 1h is invalid: the fastest plan"),
        (["gpt3_125m", "--gpus", "8xH100", "--deadline", "soon"], "--deadline soon is invalid"),
        (["gpt3_125m", "--gpus", "8xH100", "--price-per-gpu-hour", "-1"], "must be a number above 0"),
        (["gpt3_175b", "--gpus", "1xL40S"], "no layout of 1 GPU can train this"),
        (["--validate", "/nowhere.csv"], "cannot be read"),
        (["gpt3_125m", "--gpus", "8xH100", "--engine", "nativ"], "invalid choice: 'nativ'"),
        (["gpt3_125m", "--validate", "/nowhere.csv"], "reads no recipe"),
    ],
)
def test_faults_take_one_line(words, message, capsys):
    assert main(["plan", *words]) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert message in printed[-1]
    assert len(printed) == 1


@pytest.mark.parametrize("to_file", [False, True])
def test_an_unmet_deadline_still_gives_the_figures(to_file, tmp_path, capsys):
    file = tmp_path / "plan.json"
    assert main([*SMALL, "--keep", "1", "--deadline", "1h", "--json", str(file) if to_file else "-"]) == 2
    printed = capsys.readouterr()
    found = json.loads(file.read_text() if to_file else printed.out)
    assert found["missed"].startswith("--deadline 1h is invalid: the fastest plan")
    assert found["missed"] in printed.err
    assert found["plans"][0]["layouts"][0]["run"]["days"] > 1 / 24


def test_forms_of_numbers():
    assert parse_gpus("64..300xH100").counts == (64, 128, 256)
    assert parse_deadline("2w") == 14 * 86_400
