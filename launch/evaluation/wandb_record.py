"""Record the results of an evaluation as a run of Weights & Biases, separate from the run of the training."""

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
    """Create a run in the recipe's project, with each figure under its name and the few-shot scores also as a table.

    It is online if the recipe says so; otherwise it is in RUN/wandb, for `wandb sync`. `warn` gets the failures of the
    client; they do not stop the evaluation.
    """
    has_recipe = "metrics" in saved.config  # an imported model has none
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
