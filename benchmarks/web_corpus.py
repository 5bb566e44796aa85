"""WARC to `.bin/.idx` beside datatrove on one core, the same input and rules, alternating in one run; and whether the
rules decide alike.

    python benchmarks/web_corpus.py --datatrove PYTHON [--data shared/data] [--pages N] [--rounds N] [--json FILE]

The last line printed is one JSON object. docs/results/data/quality_rules.md says how to
install datatrove, what is compared, and how fairly.
"""

import argparse
import dataclasses
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import side_by_side
from rich.console import Console
from rule_cases import cases
from web_corpus_input import grow_crawl, real_texts
from web_corpus_rules import PEER, RULE_SETS, agreement, our_decisions, single_rules, their_decisions

from data_prep.corpus.tokenize import TokenizerConfig
from data_prep.dedup.exact import ExactConfig
from data_prep.execution.progress import ProgressBars
from data_prep.execution.workspace import versions as engine_versions
from data_prep.extraction.extract import ExtractConfig
from data_prep.filters.c4 import C4Config
from data_prep.filters.quality import QualityConfig
from data_prep.inputs.config import InputConfig
from data_prep.pipeline import prepare
from data_prep.recipe import OutputConfig, PrepareConfig
from gpt.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
SEED = 1234
OURS = "triaxial"
PEERS = {  # name: (words, extractor)
    "datatrove": ("spacy", "trafilatura"),
    "datatrove, our words": ("ours", "trafilatura"),
    "datatrove, our words and extractor": ("ours", "resiliparse"),
}
OURS_SLOW = "triaxial, trafilatura"
FINEWEB = {"c4": {"filter_no_terminal_punct": False}}  # the published chain takes C4's rules but this one


def main() -> int:
    args = parse_arguments()
    return side_by_side.report_result(lambda: measure(args), args.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datatrove", type=Path, metavar="PYTHON", help="the interpreter that has datatrove 0.10.1")
    parser.add_argument("--data", type=Path, default=Path("shared/data"), help="folder of real archives and texts")
    parser.add_argument("--pages", type=int, default=480, help="pages of the crawl (default 480)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the chains, 0 for none (default 5)")
    parser.add_argument("--core", type=int, default=None, help="the core that all work on (default: the last allowed)")
    parser.add_argument(
        "--agreement", choices=("all", "quick", "none"), default="all", help="quick: generated texts only"
    )
    parser.add_argument("--contenders", nargs="+", help=f"some of: {', '.join(contender_names())} (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def contender_names() -> list[str]:
    """Those that can run: trafilatura is ours to choose where the extract stage knows it."""
    knows_trafilatura = any(field.name == "method" for field in dataclasses.fields(ExtractConfig))
    return [OURS, *([OURS_SLOW] if knows_trafilatura else []), *PEERS]


def measure(args: argparse.Namespace) -> dict[str, Any] | None:
    """The comparison; None as our chain's own process."""
    if args.serve is not None:
        side_by_side.serve(lambda: our_chain(args.folder, args.data, slow=args.serve == OURS_SLOW))
        return None
    if args.datatrove is None:
        raise ConfigError("--datatrove names no Python; docs/results/data/quality_rules.md has the lines that make one")
    if args.json is not None:
        side_by_side.check_writable(args.json)
    core = max(os.sched_getaffinity(0)) if args.core is None else args.core
    os.sched_setaffinity(0, {core})  # children stay on it too
    result: dict[str, Any] = {"benchmark": "web_corpus", "machine": side_by_side.processor(), "core": core}
    result["versions"] = versions(args.datatrove)
    with tempfile.TemporaryDirectory(prefix="web-corpus-") as name:
        if args.agreement != "none":
            result["agreement"] = compare_rules(args, Path(name))
        if args.rounds:
            result |= compare_chains(args, Path(name))
    return result


def versions(python: Path) -> dict[str, str]:
    """What is compared, from both interpreters."""
    theirs = ("datatrove", "spacy", "trafilatura", "tokenizers", "warcio", "resiliparse")
    code = f"from importlib.metadata import version; print(*(n + ' ' + version(n) for n in {theirs}), sep='\\n')"
    try:
        found = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    except OSError as error:
        raise ConfigError(
            f"--datatrove {python}: {error.strerror}; docs/results/data/quality_rules.md has the lines to make it"
        ) from None
    if found.returncode:
        lacking = found.stderr.strip().splitlines()[-1]
        raise ConfigError(
            f"--datatrove {python}: {lacking}; docs/results/data/quality_rules.md has the lines that install it"
        )
    names = ("resiliparse", "fastwarc", "pycld2", "tiktoken", "numpy", "trafilatura")
    pairs = (line.split() for line in found.stdout.splitlines())
    return {f"their {name}": number for name, number in pairs} | engine_versions(names)


def compare_rules(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Agreement of decisions, both with our words (every rule set and every rule), and each with its own words."""
    texts = cases()
    if args.agreement == "all":
        texts |= real_texts(args.data)
    everything = {**RULE_SETS, **single_rules()}
    ours = our_decisions(list(texts.values()), everything)
    result: dict[str, Any] = {"texts": len(texts), "characters": sum(map(len, texts.values()))}
    for words, rules in (("ours", everything), ("spacy", RULE_SETS)):
        theirs = their_decisions(args.datatrove, list(texts.values()), rules, words=words, folder=folder)
        found = agreement([{name: row[name] for name in rules} for row in ours], theirs)
        result[f"{words} words"] = found
        label = "both with our words" if words == "ours" else "ours with our words, datatrove with spaCy's"
        report(f"\ndecisions on {len(texts)} texts, {label}: same decision, same reason, same text left; dropped")
        for name, row in found.items():
            shares = "".join(f"{100 * row[key]:9.2f}%" for key in ("same_decision", "same_reason", "same_text_left"))
            unlike = f"  {row['differing']}" if row["differing"] else ""
            report(f"  {name:<42}{shares}{row['dropped_by_us']:7}{unlike}")
    return result


def compare_chains(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Documents/s of every contender over the same crawl, by the clock and by the processor's."""
    (folder / "crawl").mkdir()
    files, n_bytes = grow_crawl(args.data / "warc", folder / "crawl", n_pages=args.pages, seed=SEED)
    report(f"\ncrawl: {args.pages} pages, {n_bytes:,} bytes of HTML, {len(files)} files")
    names = args.contenders or contender_names()
    for name in names:
        if name not in contender_names():
            raise ConfigError(f"--contenders: '{name}' is not one of {', '.join(contender_names())}")
    commands = {name: command_of(name, args, folder) for name in names}
    rounds = side_by_side.alternate(commands, rounds=args.rounds, threads=1, report=report)
    table = {name: summary(name, [answers[name] for answers in rounds], args.pages) for name in names}
    result: dict[str, Any] = {"pages": args.pages, "html_bytes": n_bytes, "rounds": args.rounds, "chains": table}
    for ours in (OURS, OURS_SLOW):
        if ours in names:
            cpu_s = {name: [answers[name]["cpu_all_s"] for answers in rounds] for name in names}
            elapsed_s = {name: [answers[name]["elapsed_s"] for answers in rounds] for name in names}
            ratios = side_by_side.speed_ratios(cpu_s, ours), side_by_side.speed_ratios(elapsed_s, ours)
            result[f"{ours} is so many times as fast"] = {"by_cpu": ratios[0], "by_clock": ratios[1]}
            for name, ratio in ratios[0].items():
                clock = ratios[1][name]["of_medians"]
                report(f"{ours} / {name}: {ratio['of_medians']:.2f} by processor time, {clock:.2f} by the clock")
    return result


def command_of(name: str, args: argparse.Namespace, folder: Path) -> list[str]:
    """The command line of a contender's process."""
    paths = f"PYTHONPATH={ROOT}:{PEER.parent}"
    if name not in PEERS:
        work = ["--serve", name, "--folder", str(folder), "--data", str(args.data)]
        return ["env", paths, sys.executable, str(Path(__file__)), *work]
    words, extractor = PEERS[name]
    tokenizer = args.data / "tokenizer" / "gpt2-tokenizer.json"
    work = ["--crawl", str(folder / "crawl"), "--folder", str(folder), "--tokenizer", str(tokenizer)]
    work += ["--words", words, "--extractor", extractor, "--settings", json.dumps(FINEWEB)]
    return ["env", paths, str(args.datatrove), str(PEER), "serve", *work]


def our_chain(folder: Path, data: Path, *, slow: bool) -> Callable[[], dict[str, Any]]:
    """A function that prepares the crawl in a fresh folder with one worker."""
    runs = 0

    def block() -> dict[str, Any]:
        nonlocal runs
        output = folder / f"ours-{'slow' if slow else 'fast'}-{runs}"
        runs += 1
        config = PrepareConfig(
            InputConfig(paths=(str(folder / "crawl" / "*.warc.gz"),)),
            OutputConfig(output, validation_fraction=0.1),
            TokenizerConfig(path=data / "tokenizer" / "gpt2-vocab.bpe"),  # the vocabulary of the peer's json
            extract=ExtractConfig(**({"method": "trafilatura"} if slow else {})),
            quality=QualityConfig(c4=C4Config(**FINEWEB["c4"])),
            dedup_exact=ExactConfig(enabled=False),  # datatrove's published chain has none
        )
        before = cpu_of_all_s()
        prepared = prepare(config, n_workers=1, progress=ProgressBars(Console(file=io.StringIO())))
        measured: dict[str, Any] = {"cpu_all_s": cpu_of_all_s() - before}
        measured["blocks"] = [
            {"block": row.step, "total": row.documents_in, "forwarded": row.documents_out} for row in prepared.counts
        ]
        measured["seconds"] = stage_seconds(output / "work" / "manifest.jsonl")
        measured["tokens"] = sum(split["tokens"] for split in prepared.description["splits"].values())
        shutil.rmtree(output)
        return measured

    return block


def stage_seconds(manifest: Path) -> dict[str, float]:
    """Seconds of each stage's tasks."""
    seconds: dict[str, float] = {}
    for line in manifest.read_text().splitlines():
        entry = json.loads(line)
        if "stage" in entry:
            seconds[entry["stage"]] = seconds.get(entry["stage"], 0.0) + entry["elapsed_s"]
    return seconds


def cpu_of_all_s() -> float:
    """Seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def summary(name: str, answers: list[dict[str, Any]], n_pages: int) -> dict[str, Any]:
    """Medians of a contender's rounds, and where its seconds and (in the last round) its documents went."""
    cpu_s = statistics.median(answer["cpu_all_s"] for answer in answers)
    elapsed_s = statistics.median(answer["elapsed_s"] for answer in answers)
    last = answers[-1]
    report(f"\n{name}: {n_pages / cpu_s:.1f} documents/s of one core ({n_pages / elapsed_s:.1f} by the clock)")
    by_round = [a.get("seconds") or {block["block"]: block["elapsed_s"] for block in a["blocks"]} for a in answers]
    seconds = {block: statistics.median(spent[block] for spent in by_round) for block in by_round[0]}
    for block, spent in seconds.items():
        report(f"  {block:<28}{spent:8.2f} s")
    counts = [block for block in last["blocks"] if "total" in block]
    report("  " + ", ".join(f"{block['block']} {block['total']} > {block.get('forwarded', 0)}" for block in counts))
    return {
        "documents_per_cpu_s": n_pages / cpu_s,
        "documents_per_s": n_pages / elapsed_s,
        "cpu_s": cpu_s,
        "elapsed_s": elapsed_s,
        "peak_memory_bytes": last["peak_memory_bytes"],
        "tokens": last["tokens"],
        "seconds_by_stage": seconds,
        "documents_by_stage": {block["block"]: [block["total"], block.get("forwarded", 0)] for block in counts},
    }


def report(line: str) -> None:
    """A line for the reader; the result is the last one."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
