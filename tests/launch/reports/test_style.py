"""One look for all reports: every page and picture uses the shared colours, and none sets its own."""

import re
from html import escape
from pathlib import Path

import pytest

from data_prep.documents.counts import Counts
from data_prep.pipeline import PreparedCorpus
from data_prep.reports import style as shared
from data_prep.reports.page import report_page as preparation_page
from gpt.evaluation.intervals import Interval
from gpt.model.config import ModelConfig
from launch.demos.side_by_side import Answered
from launch.demos.side_by_side import page as demo_page
from launch.parity.page import parity_page
from launch.parity.ranks import LayoutResult
from launch.parity.report import ParityReport, Row, Tolerances
from launch.planning.plan_figures import figures
from launch.planning.plan_page import plan_page
from launch.planning.plan_report import PlannedLayout
from launch.reports.style import run_page, svg_document
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.planner.choice.candidates import PlanRequest, candidate
from parallel.planner.choice.ranking import Ranking, RejectedGroup, rank_one
from parallel.planner.hardware.tables import Cluster, read_hardware
from parallel.planner.search import Choice

HARDWARE = read_hardware()
PLANNED = PlanRequest(
    ModelConfig(vocab_size=50257, n_ctx=2048, n_layers=24, d_model=2048, n_heads=16),
    BatchConfig(1, 2**20),
    2048,
    ParallelConfig(),
    Cluster(HARDWARE.gpus["H100"], HARDWARE.networks["400G"], 8),
    HARDWARE.stacks["triaxial"],
)
ROOT = Path(__file__).resolve().parents[3]
COLOUR = re.compile(r"#[0-9a-fA-F]{3,8}\b")
DRAWN = ["data_prep/reports/page.py", "launch/reports/page.py", "launch/reports/plots.py", "launch/reports/tables.py",
         "launch/reports/axes.py", "launch/reports/scaling.py", "launch/parity/plot.py"]  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_no_report_sets_its_own_colours(name):
    assert COLOUR.findall((ROOT / name).read_text()) == []


def test_every_colour_has_a_light_and_a_dark_value_and_every_variable_exists():
    light, dark = shared.COLOURS.split("@media")
    names = set(re.findall(r"--[\w]+(?=:)", light))
    assert names == set(re.findall(r"--[\w]+(?=:)", dark.partition("} }")[0]))
    page = run_page("a <title>", "<h1>text</h1>") + svg_document([], width=2, height=1, label="x")
    assert set(re.findall(r"var\((--\w+)\)", page)) <= names | {"--c"}
    assert "<title>a &lt;title&gt;</title>" in page


def pages():
    """A page of each kind with wide tables, from made-up results."""
    counts = [Counts(step, 1234, 1000, 2400, 1500, {"empty": 234}) for step in ("read", "dedup_exact", "tokenize")]
    about = {"tokens": 20, "documents": 4, "vocab_size": 400, "tokenizer": {"file": "tokenizer.model"}}
    yield preparation_page(PreparedCorpus(counts, {}, {"train_tokenizer": (2, 1.5)}, Path("corpus"), about))
    answers = ("It returns the smallest item. " * 4,)
    models = [Answered(name, answers, (0.5,), Interval(0.5, 0.4, 0.6)) for name in ("base", "SFT", "PPO")]
    yield demo_page(["Describe the function in one sentence."], models)
    rows = [
        Row(Choice(ParallelConfig(), 1), LayoutResult(name, [5.0], [1.0], "aa", 1.0), [1e-7], [0.0], True, {})
        for name in ("one process", "pipeline=2 data=2 schedule=interleaved_zero_bubble")
    ]
    yield parity_page(ParityReport("fp32", 1, Tolerances(1e-5, 1e-4, 1e-4), rows[:1], [], rows[1:], []), recipe="demo")
    yield plan_page("Plan of demo", list(planned()), PLANNED, knee=16)


def planned():
    """Plans of two numbers of GPUs, with a long layout in each."""
    for gpus in (8, 16):
        parallel = ParallelConfig(
            tensor=2, pipeline=2, data=gpus // 4, schedule="interleaved_1f1b", stages_per_rank=2, recompute="selective"
        )
        ranked = rank_one(PLANNED, candidate(PLANNED, parallel, 1))
        refused = RejectedGroup("a rule", 1234, "tensor=16", f"parallel.{'tensor' * 20} is invalid")
        run = figures(ranked, PLANNED, total_tokens=10**10, price=2.0)
        yield Ranking(gpus, (ranked,), 1, (refused,)), [PlannedLayout(ranked, run)]


def test_no_page_is_wider_than_a_phone(rendered, tmp_path):
    frames = "".join(f'<iframe width=390 height=600 srcdoc="{escape(page)}"></iframe>' for page in pages())
    measure = "Array.from(frames, (one) => one.document.documentElement.scrollWidth).join()"
    script = f"onload = () => document.body.append({measure})"
    (tmp_path / "phones.html").write_text(f"<!doctype html><body>{frames}<script>{script}</script>", encoding="utf-8")
    shown = rendered((tmp_path / "phones.html").as_uri())
    widths = re.search(r"([\d,]+)</body>", shown)[1].split(",")
    assert len(widths) == 4
    assert max(map(int, widths)) <= 390
