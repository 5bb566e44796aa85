"""HateCheck by function, XSTest and the counterfactual gap of a head on frozen SmolLM2, before and after template data.

    python benchmarks/moderation_probes.py DATA RUN TWEETS.npz [--layers 8 12] [--tweets 3000] [--json FILE]

TWEETS.npz is a file of moderation_features.py with `--keep-hate`, RUN the SmolLM2 that made it. A linear head is fitted
to --tweets of Davidson's, half of them hateful, with the penalty that leave-one-out chooses. Then half of the Madlibs
templates, filled as `triaxial moderate generate templates` does, are added, and the head is fitted again. The noise
check of the paper compares the templates' labels with the first head. The gap is that of the other templates. No text
is printed or written.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from moderation_data import features
from moderation_features import open_trunk, tokens_of

from gpt.moderation.frozen.leave_one_out import choose_l2
from gpt.moderation.frozen.linear_heads import FittedHeads, fit_heads
from gpt.moderation.frozen.trunk_features import layer_features
from gpt.moderation.label_files import read_records
from gpt.moderation.loop.synthetic import noise_check
from gpt.moderation.probes.counterfactuals import Counterfactual, counterfactual_gap, counterfactuals
from gpt.moderation.probes.functional import functional_cases, functional_results, totals

SUITES = {"HateCheck": "hatecheck-test_suite_cases.csv.gz", "XSTest": "xstest_prompts.csv"}
POOLS, PREFIX, MAX_TOKENS = ["mean"], 0, 40


def templates(data: Path) -> tuple[list[Counterfactual], list[Counterfactual]]:
    """Filled templates, without copies: every other one of each kind, and the others."""
    rows = [row for _, row in read_records(data / "madlibs-sentence_templates.csv")]
    words = [row for _, row in read_records(data / "madlibs-words.csv")]
    found = []
    for half in range(2):
        chosen = [
            row for kind in ("toxic", "nontoxic") for row in [one for one in rows if one["toxicity"] == kind][half::2]
        ]
        found.append([*{one.text: one for one in counterfactuals(chosen, words)}.values()])
    return found[0], found[1]


def fitted(x: np.ndarray, label: np.ndarray) -> FittedHeads:
    l2 = choose_l2(x, label[:, None], ["H"])
    print(f"fitted to {len(x):,} texts, {label.mean():.0%} positive, l2 {l2['H']:g}", flush=True)
    return fit_heads(x, label[:, None], ["H"], l2=l2, standardise=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "run", "file"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 12])
    parser.add_argument("--tweets", type=int, default=3000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    suites = {name: functional_cases([*read_records(args.data / file)]) for name, file in SUITES.items()}
    filled, probed = templates(args.data)
    texts = [case.text for cases in suites.values() for case in cases] + [one.text for one in [*filled, *probed]]
    trunk, tokenizer = open_trunk(args.run, max(args.layers))
    ids = tokens_of(texts, tokenizer, prefix=[PREFIX], max_tokens=MAX_TOKENS)
    x = dict(zip(texts, layer_features(trunk, ids, args.layers, pools=POOLS, skip=1), strict=True))
    tweets = features(args.file, "tweets", args.layers, POOLS)[: args.tweets]
    with np.load(args.file) as file:
        label = file["hateful"][: args.tweets]
    before = fitted(tweets, label)
    more, positive = np.stack([x[one.text] for one in filled]), np.array([one.positive for one in filled], dtype=float)
    agreement = noise_check(positive, (before.logits(more)[:, 0] > 0).astype(float))
    print(f"noise check of {len(filled):,} filled templates with the first head: {agreement}")
    after = fitted(np.concatenate((tweets, more)), np.concatenate((label, positive)))
    found = [probes(head, x, suites, probed) for head in (before, after)]
    show(*found)
    if args.json is not None:
        args.json.write_text(json.dumps(found))


def probes(head: FittedHeads, x: dict[str, np.ndarray], suites: dict, sentences: Sequence[Counterfactual]) -> dict:
    def score(texts: Sequence[str]) -> np.ndarray:
        return 0.5 + 0.5 * np.tanh(0.5 * head.logits(np.stack([x[one] for one in texts])))

    result: dict = {}
    for name, cases in suites.items():
        found = functional_results(score, cases, 0)
        result[name] = [asdict(one) for one in found]
        result[f"{name} totals"] = {kind: asdict(one) for kind, one in totals(found).items()}
    gap = asdict(counterfactual_gap(score, sentences, ["H"], thresholds=[0.5])[0])
    return result | {"gap": {key: value for key, value in gap.items() if key != "words"}}


def show(before: dict, after: dict) -> None:
    print("| suite | function | should be | cases | right before | after |\n|---|---|---|---|---|---|")
    for suite in SUITES:
        for a, b in zip(before[suite], after[suite], strict=True):
            kind = {True: "positive", False: "negative", None: "both"}[a["positive"]]
            shares = f"{a['right'] / a['cases']:.2f} | {b['right'] / b['cases']:.2f}"
            print(f"| {suite} | `{a['function']}` | {kind} | {a['cases']} | {shares} |")
    for name, found in (("before", before), ("after", after)):
        sums = {
            suite: {kind: round(one["estimate"], 3) for kind, one in found[f"{suite} totals"].items()}
            for suite in SUITES
        }
        print(name, sums, found["gap"])


if __name__ == "__main__":
    main()
