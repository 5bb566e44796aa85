"""`triaxial prepare train-quality`: train GPT-3's quality classifier on good and on ordinary texts."""

import argparse
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError
from launch.commands.data.prepare import import_packages
from launch.processes.terminal import table_console, worker_count

PACKAGES = ("brotli", "isal", "mmh3", "resiliparse", "pyarrow", "zstandard", "xxhash")  # of the extra `data`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments. Keys of [extract] can be overridden as in a recipe."""
    add = parser.add_argument
    for kind, texts in (("positive", "good texts"), ("negative", "ordinary texts, such as an unfiltered crawl")):
        about = f"{texts}: files or quoted patterns, of any kind that `prepare` reads"
        add(f"--{kind}", nargs="+", required=True, metavar="FILE", help=about)
    add("--output", type=Path, required=True, metavar="FILE", help="the model, ending in .safetensors")
    add("--work", type=Path, metavar="FOLDER", help="intermediate files (default: the output's name with .work)")
    add("--workers", type=int, metavar="N", help="worker processes (default: all cores)")
    add("--seed", type=int, default=0, help="draws the sample and the held-out documents (default: 0)")
    add("--max-documents", type=int, default=200_000, metavar="N", help="at most N of each kind (default: 200000)")
    add("--held-out", type=float, default=0.1, metavar="SHARE", help="share held out for evaluation (default: 0.1)")
    add("--balance", choices=("equal", "as-is"), default="equal", help="weight of the two kinds (default: equal)")
    add("--l2", type=float, default=0.01, help="strength of the L2 penalty (default: 0.01; Spark's default: 0)")
    add("--standardize", action="store_true", help="divide counts by their standard deviation first, as Spark does")
    add(
        "--max-iterations",
        type=int,
        default=500,
        metavar="N",
        help="maximum number of L-BFGS iterations (default: 500; Spark's default: 100)",
    )
    add("--alpha", type=float, default=9.0, help="alpha of the Pareto rule in the report (default: 9)")
    add("--text-field", default="text", metavar="NAME", help="field of JSON lines, column of Parquet (default: text)")
    add("--text-separator", default="", metavar="TEXT", help="separator of documents in .txt files (default: none)")
    parser.epilog = "Settings of [extract] as in a recipe, for example --extract.main_content false"
    parser.set_defaults(takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    """Train, then print the documents read, the scores on held-out documents, and the model's file."""
    import_packages(PACKAGES)
    from data_prep.execution.progress import ProgressBars
    from data_prep.quality_training.train import train_quality
    from data_prep.reports.table import counts_table, show_losses, show_quarantine

    n_workers = worker_count(args.workers)
    config = _config(args)
    console = table_console()
    trained = train_quality(config, n_workers=n_workers, progress=ProgressBars(console))
    console.print(counts_table(trained.counts))
    show_losses(trained.losses, console)
    show_quarantine(trained.quarantined, console)
    for line in _lines(trained.report):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"model: {trained.model} (sha256 {trained.sha256})", highlight=False, soft_wrap=True)
    console.print(f"report: {trained.model.with_suffix('.json')}", highlight=False, soft_wrap=True)
    return 0


def _config(args: argparse.Namespace) -> Any:
    from data_prep.extraction.page_text import ExtractConfig
    from data_prep.quality_training.sample import SampleConfig
    from data_prep.quality_training.train import FitConfig, TrainQualityConfig
    from launch.config.recipe import apply_overrides, build, unknown_name

    overrides = apply_overrides({"extract": {}}, args.overrides)
    for section in overrides:
        if section != "extract":
            raise ConfigError(f"--{section}: {unknown_name('section', section, ['extract'])}")
    return TrainQualityConfig(
        positive=tuple(args.positive),
        negative=tuple(args.negative),
        output=args.output,
        work=args.work or args.output.with_suffix(".work"),
        sample=SampleConfig(args.seed, args.max_documents),
        fit=FitConfig(
            l2=args.l2,
            max_iterations=args.max_iterations,
            standardize=args.standardize,
            balance=args.balance,
            held_out=args.held_out,
            alpha=args.alpha,
        ),
        extract=build(ExtractConfig, overrides["extract"], where="extract"),
        text_field=args.text_field,
        text_separator=args.text_separator,
    )


def _lines(report: dict[str, Any]) -> list[str]:
    data, fit, held = report["data"], report["fit"], report["held_out"]
    used = ", ".join(
        f"{data[kind]['documents']:,} {kind} documents (and {data[kind]['held_out']:,} held out)"
        for kind in ("positive", "negative")
    )
    end = "converged" if fit["converged"] else "NOT converged: raise --max-iterations or --l2"
    kept = ", ".join(f"{_percent(held[kind]['kept_by_pareto'])} of the {kind}" for kind in ("positive", "negative"))
    return [
        f"trained on {used}",
        f"fit: {fit['iterations']} iterations, {end}, loss {fit['loss']:.4g}",
        f"held out, at 0.5: precision {_number(held['precision'])}, recall {_number(held['recall'])}, "
        f"F1 {_number(held['f1'])}",
        f"held out, the Pareto rule with alpha {report['settings']['alpha']:g} keeps {kept}",
    ]


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "an unknown share" if value is None else f"{100 * value:.2f}%"
