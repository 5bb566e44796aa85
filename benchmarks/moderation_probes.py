"""HateCheck by function, XSTest and the counterfactual gap of linear heads on SmolLM2, before and after template data.

    python benchmarks/moderation_probes.py DATA RUN FOLDER [--layers 12] [--tweets 3000] [--dtype bfloat16]

Every step is a command of Triaxial: `prepare` and two steps of `train` make a classifier of RUN's first layers (RUN is
SmolLM2 as `triaxial convert` imports it), whose trunk is frozen; `moderate heads --l2 auto` fits its head to Davidson's
tweets, half of them hateful; `moderate probe` measures. Then `moderate generate templates` fills half of the Madlibs
templates, its noise check compares them with the classifier's scores, the head is fitted to both, and the probes are
repeated. The gap is that of the other half of the templates. FOLDER keeps everything; its JSON files have no texts, and
none is printed.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path

from moderation_data import tweets

TAXONOMY = """name = "hate"
version = 1
[[category]]
id = "H"
title = "Hate"
definition = "The text attacks or demeans people because of a group that they belong to."
"""
PREPARE = """[input]
paths = ["{folder}/few.jsonl"]
[output]
folder = "{folder}/data"
validation_fraction = 0.1
[tokenizer]
path = "{tokenizer}"
[labels]
taxonomy = "{folder}/hate.toml"
max_tokens = 128
"""


def triaxial(*words: object) -> tuple[int, str]:
    """Run a command; its status and output. No command prints a text."""
    began = time.monotonic()
    command = [sys.executable, "-m", "launch.main", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(f"{' '.join(map(str, words[:3]))}: status {done.returncode}, {time.monotonic() - began:.0f} s", flush=True)
    return done.returncode, done.stdout


def must(*words: object) -> str:
    status, output = triaxial(*words)
    if status != 0:
        sys.exit(output[-3000:])
    return output


def write_inputs(args: argparse.Namespace) -> None:
    """Labelled tweets, a few of them for `prepare`, the taxonomy, the suites, and the two halves of the templates."""
    texts, hateful, _ = tweets(args.data, args.tweets, keep_hate=True)
    lines = [
        json.dumps({"text": text, "labels": {"H": int(label)}}) + "\n"
        for text, label in zip(texts, hateful, strict=True)
    ]
    args.folder.mkdir(parents=True, exist_ok=True)
    (args.folder / "tweets.jsonl").write_text("".join(lines))
    (args.folder / "few.jsonl").write_text("".join(lines[:: max(1, len(lines) // 200)]))
    (args.folder / "hate.toml").write_text(TAXONOMY)
    with (args.data / "madlibs-sentence_templates.csv").open(encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    for half, name in enumerate(("train", "probe")):
        chosen = [
            row for kind in ("toxic", "nontoxic") for row in [one for one in rows if one["toxicity"] == kind][half::2]
        ]
        with (args.folder / f"{name}_templates.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(chosen)


def make_classifier(args: argparse.Namespace) -> Path:
    """A run of the first layers of RUN, with a linear head over the mean of a text, after two steps."""
    folder, tokenizer = args.folder.resolve(), args.run.resolve() / "tokenizer/tokenizer.json"
    (folder / "prepare.toml").write_text(PREPARE.format(folder=folder, tokenizer=tokenizer))
    must("prepare", folder / "prepare.toml")
    run = folder / "run"

    def corpus(split: str) -> str:
        return f'[{{path = "{folder}/data/{split}", streams = {{labels = "{folder}/data/{split}_labels"}}}}]'

    must(
        *("train", "moderation_smollm2", "--run.directory", run, "--run.start_from", args.run.resolve()),
        *("--model.n_layers", args.layers, "--objective.taxonomy", folder / "hate.toml"),
        *("--objective.head", "linear", "--objective.pool", "mean"),
        *("--optimizer.frozen", '["embed.*", "blocks.*", "norm.*"]', "--data.tokenizer", tokenizer),
        *("--data.train", corpus("train"), "--data.validation", corpus("validation"), "--data.seq_len", 128),
        *("--batch.micro_batch_size", 1, "--batch.global_batch_tokens", 128),
        *("--train.total_steps", 2, "--schedule.warmup_steps", 1, "--train.evaluate_every_steps", 1),
    )
    return run


def probed(args: argparse.Namespace, run: Path, name: str) -> dict:
    path = args.folder / f"{name}.json"
    must(
        *("moderate", "probe", run, "--suite", f"{args.data}/hatecheck-test_suite_cases.csv.gz=H"),
        *("--suite", f"{args.data}/xstest_prompts.csv=H", "--templates", args.folder / "probe_templates.csv"),
        *("--words", args.data / "madlibs-words.csv", "--json", path),
    )
    return json.loads(path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "run", "folder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tweets", type=int, default=3000)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    write_inputs(args)
    run, folder = make_classifier(args), args.folder
    heads = ("moderate", "heads", run, "--l2", "auto", "--dtype", args.dtype, "--labels", folder / "tweets.jsonl")
    print(must(*heads))
    before = probed(args, run, "before")
    filled, taxonomy = folder / "filled.jsonl", ("--taxonomy", folder / "hate.toml")
    templates = ("--templates", folder / "train_templates.csv", "--words", args.data / "madlibs-words.csv")
    print(must("moderate", "generate", "templates", *templates, *taxonomy, "--category", "H", "--output", filled))
    must("moderate", "score", run, filled, "--output", folder / "scores.jsonl", "--dtype", args.dtype)
    check = ("moderate", "generate", "check", filled, *taxonomy, "--scores", folder / "scores.jsonl")
    print(triaxial(*check)[1])  # the classifier that needs the templates may disagree with them
    print(must(*heads, filled))
    show(before, probed(args, run, "after"))


def show(before: dict, after: dict) -> None:
    print("| suite | function | should be | cases | right before | right after |\n|---|---|---|---|---|---|")
    for one, other in zip(before["functional"], after["functional"], strict=True):
        for a, b in zip(one["results"], other["results"], strict=True):
            kind = {True: "positive", False: "negative", None: "both"}[a["positive"]]
            shares = f"{a['right'] / a['cases']:.2f} | {b['right'] / b['cases']:.2f}"
            print(f"| {Path(one['suite']).name} | {a['function']} | {kind} | {a['cases']} | {shares} |")
    for name, found in (("before", before), ("after", after)):
        gap = found["counterfactuals"][0]
        print(name, {key: value for key, value in gap.items() if key != "words"})


if __name__ == "__main__":
    main()
