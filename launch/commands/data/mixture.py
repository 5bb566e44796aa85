"""`triaxial data mixture`: the tokens and epochs of each corpus in a mixture. Needs only the lengths of the corpora."""

import argparse

from rich import box
from rich.console import Console
from rich.table import Table

from gpt.data.dataset import TrainingData
from gpt.data.mixture import MixtureConfig, MixturePlan, PlannedCorpus, plan_mixture
from gpt.errors import ConfigError
from gpt.telemetry.screen import human_count
from launch.config.corpora import naming_the_maker
from launch.config.recipe import build, find_recipe, read_toml
from launch.config.run_config import RunConfig, build_run_config, recipe_table
from launch.processes.terminal import table_console, work_progress
from launch.reports.written import add_json_option, json_destination

MAX_ERROR = 1e-3  # relative error of a corpus's tokens; above it, a line explains the error
WIDE = 110  # columns of a terminal that shows token counts with all digits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a training recipe, whose token files must exist, or one with a table [mixture]")
    add_json_option(parser, "the figures")
    parser.epilog = "Override any key: --mixture.planned_tokens 10_000_000_000_000, --train.total_tokens 300e9"
    parser.set_defaults(takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    with json_destination(args.json) as emit:
        with work_progress() as progress:
            progress.start("reading the lengths of the corpora")
            plan, note = read_plan(args.recipe, args.overrides)
        show(plan, note, table_console())
        emit(plan.as_json())
    return 0


def read_plan(recipe: str, overrides: list[str]) -> tuple[MixturePlan, str]:
    """The plan of a recipe, and the recipe's note."""
    table = recipe_table(read_toml(find_recipe(recipe)), overrides)
    if "mixture" in table:
        if len(table) > 1:
            others = ", ".join(f"[{key}]" for key in table if key != "mixture")
            raise ConfigError(f"{recipe}: a planning recipe has only the table [mixture]. Remove {others}")
        mixture = build(MixtureConfig, table["mixture"], where="mixture")
        return plan_mixture(
            mixture.corpora, seq_len=mixture.seq_len, planned_tokens=mixture.planned_tokens
        ), mixture.note
    if "data" not in table:
        raise ConfigError(f"{recipe} has neither the table [data] of a training recipe nor the table [mixture]")
    return plan_of_run(build_run_config(table)), ""


def plan_of_run(config: RunConfig) -> MixturePlan:
    """The plan of a training run, from the lengths of its token files."""
    seq_len, batch = config.data.seq_len, config.batch.ramp
    # Opening the data raises the same errors as training would.
    with naming_the_maker():
        data = TrainingData(config.data, seed=config.run.seed, vocab_size=config.model.vocab_size)
    corpora = [
        PlannedCorpus(name=corpus.name, n_tokens=files.tokens.n_tokens, weight=corpus.weight)
        for corpus, files in zip(data.corpora, data.files, strict=True)
    ]
    return plan_mixture(
        corpora,
        seq_len=seq_len,
        sizes={files.name: files.n_samples for files in data.files},
        planned_tokens=config.train.total_tokens,
        samples=batch.tokens_seen(config.train.steps(batch)) // seq_len,
    )


def show(plan: MixturePlan, note: str, console: Console) -> None:
    """Print the plan as a table, then explain large errors, then the recipe's note."""
    narrow = console.is_terminal and console.width < WIDE
    title = f"{plan.samples:,} sequences of {plan.seq_len:,} tokens = {plan.realised_tokens:,} tokens"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    together = {
        "tokens": human_count(sum(row.n_tokens for row in plan.corpora)),
        "weight": "100.00%",
        "planned tokens": f"{plan.planned_tokens:,}",
        "realised tokens": _count(plan.realised_tokens, short=narrow),
        "error": f"{plan.realised_tokens / plan.planned_tokens - 1:+.4%}",
        "epochs": "",
        "epochs, stated": "",
    }
    hidden = {"planned tokens"} if narrow else set()  # the error says how far they are
    if not any(row.stated_epochs is not None for row in plan.corpora):
        hidden.add("epochs, stated")
    shown = [header for header in together if header not in hidden]
    longest = max(len(row.name) for row in plan.corpora)
    table.add_column("corpus", footer="together", overflow="fold", min_width=min(longest, 24))
    for header in shown:
        width = max(map(len, header.split()))
        table.add_column(header, footer=together[header], justify="right", min_width=width)
    for row in plan.corpora:
        figures = {
            "tokens": human_count(row.n_tokens),
            "weight": f"{row.share:.2%}",
            "planned tokens": f"{row.planned_tokens:,.0f}",
            "realised tokens": _count(row.realised_tokens, short=narrow),
            "error": f"{row.error:+.4%}",
            "epochs": f"{row.epochs:.4g}",
            "epochs, stated": "" if row.stated_epochs is None else f"{row.stated_epochs:g}",
        }
        table.add_row(row.name, *(figures[header] for header in shown))
    console.print(table)
    for row in plan.corpora:
        if abs(row.error) > MAX_ERROR:
            console.print(
                f"{row.name}: {row.samples:,} sequences differ by {row.error:+.2%} from its share of "
                f"{row.planned_tokens / plan.seq_len:,.2f}. A mixture is exact to within 2 sequences per corpus",
                highlight=False,
            )
    if note:
        console.print(note, highlight=False)


def _count(n: int, *, short: bool) -> str:
    return human_count(n) if short else f"{n:,}"
