"""`triaxial report --scaling`: the shipped family trained for a few steps, runs with a known law, and mistakes."""

import itertools
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from gpt.evaluation.scaling_law import GPT3_LAW, PF_DAY_FLOPS
from launch.config.run_config import as_dict, read_run_config
from launch.main import main

FAMILY = ("scaling_25k", "scaling_100k", "scaling_330k", "scaling_1m")


def test_the_family_differs_only_in_size_and_learning_rate():
    """Each model is three to four times the previous one, in GPT-3's shape, with the learning rate of its rule."""
    sizes = []
    shared = []
    for name in FAMILY:
        config = read_run_config(name, [])
        model = config.model
        sizes.append(model.non_embedding_parameters)
        assert config.optimizer.learning_rate == pytest.approx(0.003239 - 0.0001395 * np.log(sizes[-1]), abs=0.51e-4)
        assert (model.ff_width, model.positions, model.norm, model.tied) == (
            4 * model.d_model,
            "learned",
            "layernorm",
            True,
        )
        table = as_dict(config)
        for section, key in (("run", "directory"), ("optimizer", "learning_rate")):
            del table[section][key]
        for key in ("n_layers", "d_model", "n_heads"):
            del table["model"][key]
        shared.append(table)
    assert shared == [shared[0]] * 4
    assert all(2.9 < b / a < 4.0 for a, b in itertools.pairwise(sizes))


@pytest.fixture(scope="module")
def trained(tiny_corpus, tmp_path_factory):
    """The four recipes, trained for six small steps on the tiny corpus."""
    folder = tmp_path_factory.mktemp("family")
    quiet = {
        "data.tokenizer": f"{tiny_corpus.folder}/topics.model",
        "data.train": f"[{{ path = '{tiny_corpus.folder}/train' }}]",
        "data.validation": f"[{{ path = '{tiny_corpus.folder}/validation', name = 'topics' }}]",
        "model.vocab_size": 512,
        "batch.micro_batch_size": 2,
        "batch.global_batch_tokens": 256,
        "schedule.warmup_tokens": 512,
        "train.total_tokens": 1536,
        "train.evaluate_every_tokens": 512,
        "train.validation_tokens": 1024,
        "run.peak_flops_per_s": 1e12,
        "checkpoint.keep_last": 1,
        "metrics.wandb": "disabled",
    }
    words = [word for key, value in quiet.items() for word in (f"--{key}", str(value))]
    for name in FAMILY:
        assert main(["train", name, "--run.directory", str(folder / name), *words]) == 0
    return folder


def test_real_runs_of_the_shipped_family(trained, tmp_path, capsys):
    runs = [str(trained / name) for name in reversed(FAMILY)]
    files = {kind: tmp_path / f"scaling.{kind}" for kind in ("svg", "html", "json")}
    capsys.readouterr()
    assert main(["report", "--scaling", *runs, *(w for kind, f in files.items() for w in (f"--{kind}", str(f)))]) == 0
    said = capsys.readouterr().out
    facts = json.loads(files["json"].read_text(), parse_constant=pytest.fail)
    assert [run["run"] for run in facts["runs"]] == runs[::-1], "smallest first"
    assert facts["corpus"] == "topics"
    assert facts["notes"] == []
    for run in facts["runs"]:
        lines = [json.loads(line) for line in Path(run["run"], "metrics.jsonl").read_text().splitlines()]
        losses = [line["validation/topics/loss"] for line in lines if "validation/topics/loss" in line]
        assert run["loss_nats"] == losses
        assert run["tokens"] == [512, 1024, 1536]
        n = read_run_config(run["run"].rpartition("/")[2], []).model.non_embedding_parameters
        assert run["pf_days"] == pytest.approx([6 * n * tokens / 8.64e19 for tokens in run["tokens"]])
        assert f"{losses[-1]:.4f}" in said
    assert facts["gpt3_law"] == {"factor": 2.57, "exponent": -0.048, "exponent_95": None}
    check_picture(files["svg"].read_text(), sizes=["25.5k", "100k", "336k", "992k"])
    page = files["html"].read_text()
    assert files["svg"].read_text() in page
    assert "<script" not in page


def check_picture(text, *, sizes):
    """Check a whole XML document: a line and a name for each size, and no point outside the picture."""
    picture = ET.fromstring(text)
    names = "{http://www.w3.org/2000/svg}"
    width, height = map(float, picture.get("viewBox").split()[2:])
    texts = [element.text for element in picture.iter(f"{names}text")]
    assert all(texts.count(size) == 2 for size in sizes), "at the end of its line and in the legend"
    lines = [element for element in picture.iter(f"{names}path") if element.get("class") == "run"]
    assert len({line.get("stroke") for line in lines}) == len(sizes)
    for line in lines:
        numbers = [float(n) for n in re.findall(r"[\d.]+", line.get("d"))]
        assert all(0 <= n <= max(width, height) for n in numbers)
    assert len(text) < 100_000


def lawful_runs(written_runs, folder, *, factor=1.2, exponent=-0.09, **settings):
    """Two runs of 20 evaluations: the smaller leads over its first half, the larger lies on the law thereafter."""
    paths = []
    sizes = [read_run_config(name, []).model.non_embedding_parameters for name in FAMILY[:2]]
    handover = 10 * 81_920 * sizes[0] * 6 / PF_DAY_FLOPS
    for name, size in zip(FAMILY, sizes, strict=False):
        pf_days = 6 * size * 81_920 * np.arange(1, 21) / PF_DAY_FLOPS
        over = np.log(pf_days / handover) if name == FAMILY[0] else np.log(handover / pf_days)
        losses = factor * pf_days**exponent * np.exp(0.3 * np.maximum(0.0, over))
        paths.append(str(written_runs.write_evaluations(folder / name, name, losses.tolist(), **settings)))
    return paths


def test_the_law_of_a_known_family_is_printed_and_drawn(written_runs, tmp_path, capsys):
    runs = lawful_runs(written_runs, tmp_path)
    assert (
        main(["report", "--scaling", *runs, "--json", str(tmp_path / "s.json"), "--svg", str(tmp_path / "s.svg")]) == 0
    )
    said = capsys.readouterr().out
    facts = json.loads((tmp_path / "s.json").read_text())
    assert facts["law"]["factor"] == pytest.approx(1.2, rel=0.01)
    assert facts["law"]["exponent"] == pytest.approx(-0.09, rel=0.01)
    used = [point for point in facts["frontier"] if point["fitted"]]
    assert {point["run"] for point in used} == {runs[1]}
    assert len(used) > 10
    assert "frontier: L = 1.2 C^-0.090" in said
    assert "All of these evaluations are of one run" in said
    assert "GPT-3: L = 2.57 C^-0.048" in said
    assert "its tokenizer is missing" in said, "a note says what could not be compared"
    check_picture((tmp_path / "s.svg").read_text(), sizes=["25.5k", "100k"])
    assert (tmp_path / "s.svg").read_text().count('class="fit"') == 2
    assert GPT3_LAW.loss(1.0) == 2.57


def test_mistakes_are_reported_in_one_line(written_runs, tmp_path, capsys):
    one, two = lawful_runs(written_runs, tmp_path / "<runs> &")
    for words, message in (
        (["--scaling", one], "got 1. Name two or more"),
        (["--scaling", one, str(tmp_path / "no")], "no: no such directory"),
        (["--scaling", one, two, "--corpus", "books"], "--corpus books:"),
        ([one, two], "2 runs: a report is about one. Use --serve"),
        ([one, "--svg", "x.svg"], "--svg x.svg is only for --scaling"),
        ([one, "--corpus", "web"], "--corpus web is only for --scaling"),
    ):
        capsys.readouterr()
        assert main(["report", *words]) == 2, message
        said = capsys.readouterr()
        assert message in said.err
        assert (said.out, said.err.count("\n")) == ("", 1)


def test_a_family_without_a_frontier_has_no_law_and_says_so(written_runs, tmp_path, capsys):
    runs = [str(written_runs.write_evaluations(tmp_path / name, name, [4.0, 3.0])) for name in FAMILY[:2]]
    assert main(["report", "--scaling", *runs, "--corpus", "web"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "no power law is fitted: 0 evaluations lie on the frontier" in said
    assert f"note: {runs[0]}".replace(" ", "") in said.replace(" ", ""), "the notes of the family are printed"
