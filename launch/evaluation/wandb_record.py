"""The results of an evaluation as a run of Weights & Biases, beside the run of the training; measures nothing."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any

from gpt.evaluation.few_shot.scores import TaskScore
from gpt.telemetry.metrics import MetricsConfig
from gpt.telemetry.wandb import WandbRun, WandbSettings
from gpt.training.few_shot_probe import few_shot_values
from launch.runs.saved_run import SavedRun, section


def record_in_wandb(
    saved: SavedRun, report: dict[str, Any], scores: Sequence[TaskScore], *, warn: Callable[[str], None]
) -> None:
    """A new run in the project of the recipe: each figure under its name, the few-shot scores as a table too.

    Online where the recipe says so, else in RUN/wandb, for `wandb sync`. A failure of the client is told, no more.
    """
    has_recipe = "metrics" in saved.config  # a converted model has none
    metrics = section(MetricsConfig, saved.config, "metrics") if has_recipe else MetricsConfig()
    run = WandbRun(
        WandbSettings(
            directory=saved.run_directory,
            project=metrics.wandb_project or MetricsConfig.wandb_project,
            entity=metrics.wandb_entity,
            name=f"{metrics.wandb_name or saved.run_directory.resolve().name} evaluation",
            online=metrics.wandb == "online",
            resume=False,
            kept_elsewhere="the results are printed, and in the file of --json",
            job_type="evaluation",
        ),
        run_config=saved.config,
        warn=warn,
    )
    values: dict[str, float | int] = {"tokens_seen": saved.tokens_seen}
    for name, found in report.get("validation", {}).items():
        values |= {f"validation/{name}/loss": found["loss_nats"], f"validation/{name}/perplexity": found["perplexity"]}
    for name, found in report.get("text", {}).get("texts", {}).items():
        values |= {f"text/{name}/{figure}": value for figure, value in found.items() if value is not None}
    run.log(saved.step, values | few_shot_values(scores))
    if scores:
        columns = [field.name for field in fields(TaskScore)]
        rows = [[asdict(score)[column] for column in columns] for score in scores]
        run.log_table(saved.step, "few_shot", columns=columns, rows=rows)
    run.finish(exit_code=0)
