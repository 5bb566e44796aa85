"""How a run ends before its last token, and the texts that it writes on the way; each run in this very process."""

import json
import re
from pathlib import Path
from typing import Any

from launch.main import main

QUIET = ["--metrics.wandb", "disabled", "--run.peak_flops_per_s", "1e12"]


def train(tiny_corpus: Any, run: Path, *words: object) -> int:
    return main(["train", str(tiny_corpus.recipe), "--run.directory", str(run), *QUIET, *map(str, words)])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_target_loss_ends_a_run_at_the_evaluation_that_reaches_it(tiny_corpus, tmp_path, capsys):
    run = tmp_path / "run"
    samples = ["--train.sample_every_tokens", 2048, "--train.sample_prompts", '["The", ""]']
    samples += ["--train.sample_new_tokens", 8]
    words = ["--train.evaluate_every_tokens", 1024, "--train.target_loss", 5.9, *samples]
    assert train(tiny_corpus, run, *words) == 0
    shown = capsys.readouterr().out
    seen = {line["step"]: line["validation/topics/loss"] for line in lines(run / "metrics.jsonl") if "loss" not in line
            and "validation/topics/loss" in line}  # fmt: skip
    last = max(seen)
    assert last < 12
    assert seen[last] <= 5.9 < min(loss for step, loss in seen.items() if step < last)
    assert "done: train.target_loss = 5.9 is reached" in shown
    assert (run / "checkpoints" / f"step-{last:09}").is_dir()
    summary = json.loads((run / "train_summary.json").read_text())
    assert (summary["step"], summary["ended"], summary["interrupted"]) == (last, "target_loss", False)
    texts = lines(run / "samples.jsonl")
    assert [(text["step"], text["prompt"]) for text in texts] == [(4, "The"), (4, "")] * (last // 4), texts
    assert all(text["text"].startswith(text["prompt"]) for text in texts)
    assert "\nsample at step 4, after 'The':\n  | The" in shown
    assert "\nsample at step 4, without a prompt:\n  | " in shown

    assert train(tiny_corpus, run) == 0, "without the target the run goes on"
    assert "resumed from" in capsys.readouterr().out
    assert lines(run / "metrics.jsonl")[-1]["step"] == 12
    kinds = [event["kind"] for event in lines(run / "events.jsonl")]
    assert kinds.count("resumed") == 1
    assert kinds.count("ended") == 2

    page = tmp_path / "report.html"
    assert main(["report", str(run), "--html", str(page)]) == 0
    row = r"<td>(\d+)</td><td>(?:[\d.]+ KiB)?</td><td>([^<]*)</td><td class=text>(on disk|deleted)"
    rows = re.findall(row, page.read_text())
    stored = {int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir()}
    assert {int(step) for step, _, state in rows if state == "on disk"} == stored
    assert sorted(int(step) for step, _, _ in rows) == sorted({4, last, 8, 12})
    assert any(re.fullmatch(r"[\d.]+ s, [\d.]+ s training stopped", took) for _, took, _ in rows), "beside training"


def test_a_run_stops_when_its_time_is_over_and_goes_on_later(tiny_corpus, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(tiny_corpus, run, "--train.stop_after_s", 1e-6) == 0
    assert "stopped after train.stop_after_s = 1e-06, 512 tokens in 1 step" in capsys.readouterr().out
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000000001"]
    assert train(tiny_corpus, run, "--train.total_tokens", 1024) == 0
    assert [line["step"] for line in lines(run / "metrics.jsonl") if "loss" in line] == [1, 2]
