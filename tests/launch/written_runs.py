"""For tests of reports: run directories written by the real writers, without training."""

import json
from html.parser import HTMLParser
from pathlib import Path

from gpt.telemetry.metrics import MetricsConfig, MetricsWriter
from gpt.telemetry.time_ledger import TimeLedger
from launch.config.run_config import as_dict, read_run_config

HOSTILE = '<script>alert(1)</script> & "quoted" \x1b[2J\x1b]0;title\x07'


def write_run(directory, *, steps, lost=(), spike_at=None):
    """Write a run directory; the steps in `lost` are taken twice, by two processes."""
    for part, (first, last) in enumerate([(0, lost[1]), (lost[0], steps)] if lost else [(0, steps)]):
        resume = first if part else None
        metrics = MetricsWriter(
            MetricsConfig(wandb="disabled"), directory, run_config={}, resume_step=resume, interactive=True
        )
        with metrics, TimeLedger(directory / "ledger.jsonl", world_size=2, restart_count=part) as ledger:
            ledger.resume(step=first, tokens=100 * first)
            if part:
                metrics.event("resumed", step=first, text=f"resumed from step {first}")
            for step in range(first + 1, last + 1):
                with ledger.span("training"):
                    loss = 900.0 if step == spike_at else 8.0 - step / steps
                values = {"loss": loss, "tokens_per_s": 1000.0, "step_s": 0.1, "tokens_seen": 100 * step}
                metrics.log(step, values | {"learning_rate": 1e-4, "gradient_norm": 0.5, "peak_memory_bytes": 3 << 30})
                ledger.step_done(step=step, tokens=100 * step)
            metrics.log(last, {"validation/web <b>/loss": 7.5, "goodput": 0.5})
            metrics.event("step_skipped", step=last, text=HOSTILE, more=float("nan"))
            metrics.event("checkpoint_saved", step=last, text=f"saved {last}")


def write_evaluations(directory, recipe, losses, *, more=(), corpus="web"):
    """Write the files of a run that are read for a family; one evaluation every 40 steps of 2,048 tokens."""
    config = read_run_config(recipe, ["--run.directory", str(directory), *more])
    quiet = MetricsConfig(wandb="disabled")
    with MetricsWriter(quiet, directory, run_config={}, resume_step=None, interactive=False) as metrics:
        for i, loss in enumerate(losses, 1):
            metrics.log(40 * i, {f"validation/{corpus}/loss": loss})
    (directory / "config.json").write_text(json.dumps(as_dict(config)))
    return Path(directory)


class Tags(HTMLParser):
    """Collect the tags and attributes of a page, and check that every tag is closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.attributes = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "html"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
