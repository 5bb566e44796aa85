"""A reward model from SmolLM2-135M on AlpacaEval's rankings, beside baselines on the same prompts.

    python benchmarks/reward_baselines.py baselines
    python benchmarks/reward_baselines.py train FOLDER --model SMOLLM2 [--minutes 30] [--completions 4] ... (--help)
    python benchmarks/reward_baselines.py compare FOLDER [--json FILE]

600 prompts train and 205 are held out, the same for all. A pair is two outputs of a prompt whose log-odds by the judge
differ by at least 1 nat, as in the reference figures. Baselines: the longer output wins; and logistic regression on the
differences of TF-IDF (words and pairs of words) and of length (needs scikit-learn), refitted here.

`train` prepares FOLDER, converts SMOLLM2 (a Hugging Face folder of SmolLM2-135M-Instruct), trains, and scores the
held-out prompts. `--completions` and `--max-tokens` limit what the CPU must read: of each training prompt so many
outputs, spread over its ranking. Held-out prompts keep all outputs, 358,000 tokens; `--held-out` scores fewer prompts.
`compare` gives the difference of the accuracies with a 95% interval, bootstrapped by prompt, with both on the same
pairs. FOLDER keeps everything; AlpacaEval's prompts are for tests only.
"""

import argparse
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import side_by_side
from numpy.typing import NDArray

from gpt.data.sampling_rules import PackedDocuments
from gpt.token_files.files import TokenFile

DATA = Path("/work/shared/data/other/instruct/alpaca_eval-rankings-k9.jsonl.gz")
TRAIN_PROMPTS, MARGIN_NATS, DRAWS = 600, 1.0, 2000
ROW_MULTIPLE = 64
PREPARE = """
[input]
paths = ["{folder}/train.jsonl"]
[output]
folder = "{folder}/corpus"
validation_fraction = 0.03
[conversations]
kind = "rankings"
format = "{format}"
max_tokens = {max_tokens}
tie_margin = {margin}
[tokenizer]
path = "{model}"
[dedup_minhash]
enabled = false
"""


@dataclass(frozen=True)
class Prompt:
    """A prompt with its outputs, each of another text, and the judge's log-odds."""

    text: str
    outputs: tuple[str, ...]
    scores: NDArray[np.float64]

    @property
    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The better and the worse output of each pair."""
        better, worse = np.nonzero(self.scores[:, None] - self.scores[None, :] >= MARGIN_NATS)
        return better, worse


def main() -> int:
    args = parse_arguments()
    if args.command == "train":
        return train(args)
    work: Callable[[], Any] = lambda: baselines() if args.command == "baselines" else compare(args.folder)  # noqa: E731
    return side_by_side.report_result(work, args.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("baselines", "train", "compare"):
        command = commands.add_parser(name)
        if name != "baselines":
            command.add_argument("folder", type=Path)
        if name != "train":
            command.add_argument("--json", type=Path)
    train_parser = commands.choices["train"]
    train_parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder of SmolLM2-135M-Instruct")
    train_parser.add_argument("--prompts", type=int, default=TRAIN_PROMPTS, help="prompts to train on")
    train_parser.add_argument("--held-out", type=int, default=10_000, help="held-out prompts to score")
    train_parser.add_argument("--completions", type=int, default=20, help="outputs of each prompt to train on")
    train_parser.add_argument("--max-tokens", type=int, default=512, help="longest conversation to train on")
    train_parser.add_argument("--format", default="chatml", help="conversations.format, such as chatml")
    train_parser.add_argument("--rows", type=int, default=1, help="rows of a step")
    train_parser.add_argument("--row-tokens", type=int, default=8192, help="tokens of a row, at least")
    train_parser.add_argument("--epochs", type=float, default=1.0)
    train_parser.add_argument("--minutes", type=float, default=60.0, help="stop training after so many minutes")
    train_parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    train_parser.add_argument("--seed", type=int, default=1234)
    train_parser.add_argument(
        "--settings", nargs="*", default=[], help="further settings: --settings optimizer.lr=1e-5"
    )
    return parser.parse_args()


def load() -> tuple[list[Prompt], list[Prompt]]:
    """The training and the held-out prompts: a fixed permutation of all. Of outputs with equal texts, the first."""
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    prompts = []
    for record in records:
        first = {output["output"]: output["log_odds"] for output in reversed(record["outputs"]) if output["output"]}
        texts = tuple(dict.fromkeys(output["output"] for output in record["outputs"] if output["output"]))
        prompts.append(Prompt(record["instruction"], texts, np.array([first[text] for text in texts])))
    order = np.random.default_rng(0).permutation(len(prompts))
    shuffled = [prompts[i] for i in order]
    return shuffled[:TRAIN_PROMPTS], shuffled[TRAIN_PROMPTS:]


def baselines() -> dict[str, Any]:
    """Accuracy of both baselines on the held-out prompts, over pairs, with intervals by prompt."""
    training, held_out = load()
    result: dict[str, Any] = {"pairs": sum(len(prompt.pairs[0]) for prompt in held_out), "prompts": len(held_out)}
    for name, scores in (("longer", lengths(held_out)), ("tfidf_and_length", fitted(training, held_out))):
        result[name] = interval(right_of(held_out, scores))
    return result


def lengths(prompts: list[Prompt]) -> list[NDArray[np.float64]]:
    return [np.array([len(output) for output in prompt.outputs], dtype=np.float64) for prompt in prompts]


def fitted(training: list[Prompt], held_out: list[Prompt]) -> list[NDArray[np.float64]]:
    """Scores of the held-out outputs by logistic regression on differences of TF-IDF and of log length."""
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True, max_features=50_000)
    vectorizer.fit([output for prompt in training for output in prompt.outputs])

    def features(prompt: Prompt) -> Any:
        size = np.log1p([[len(output)] for output in prompt.outputs])
        return sparse.hstack([vectorizer.transform(prompt.outputs), sparse.csr_matrix(size)], format="csr")

    differences, signs = [], []
    for prompt in training:
        of_prompt, (better, worse) = features(prompt), prompt.pairs
        sign = np.where(np.arange(len(better)) % 2, 1.0, -1.0)  # both orders, so that the classes are even
        differences.append(sparse.diags(sign) @ (of_prompt[better] - of_prompt[worse]))
        signs.append(sign)
    model = LogisticRegression(fit_intercept=False, C=1.0, max_iter=2000)
    model.fit(sparse.vstack(differences), np.concatenate(signs))
    return [model.decision_function(features(prompt)) for prompt in held_out]


def right_of(prompts: list[Prompt], scores: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """1 for each pair of each prompt in the right order, 0.5 for equal scores, else 0."""
    found = []
    for prompt, own in zip(prompts, scores, strict=True):
        better, worse = prompt.pairs
        difference = own[better] - own[worse]
        found.append((difference > 0) + 0.5 * (difference == 0))
    return found


def interval(right: list[NDArray[np.float64]]) -> dict[str, float]:
    """The mean over all pairs, and a 95% interval by prompt."""
    sums, counts = np.array([each.sum() for each in right]), np.array([len(each) for each in right])
    draw = np.random.default_rng(0)
    weights = draw.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=DRAWS)
    low, high = np.quantile((weights @ sums) / (weights @ counts), [0.025, 0.975])
    return {"mean": float(sums.sum() / counts.sum()), "low": float(low), "high": float(high)}


def train(args: argparse.Namespace) -> int:
    """Prepare, convert, train and score. Steps that are done already are left out, except for training and scoring."""
    training, held_out = load()
    folder: Path = args.folder
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [spread(prompt, args.completions) for prompt in training[: args.prompts]]
    write(folder / "train.jsonl", chosen)
    write(folder / "held_out.jsonl", held_out[: args.held_out])
    if not (folder / "corpus" / "corpus.json").is_file():
        longest = {"max_tokens": args.max_tokens, "margin": MARGIN_NATS, "format": args.format}
        (folder / "prepare.toml").write_text(PREPARE.format(folder=folder, model=args.model, **longest))
        triaxial("prepare", folder / "prepare.toml")
    if not (folder / "base").is_dir():
        triaxial("convert", args.model, "--to", "triaxial", "--output", folder / "base")
    words = reward_words(folder / "corpus", row_tokens=args.row_tokens, rows=args.rows, epochs=args.epochs) | {
        "run.directory": folder / "run",
        "run.start_from": folder / "base",
        "run.seed": args.seed,
        "data.tokenizer": args.model / "tokenizer.json",
        "train.stop_after_s": 60 * args.minutes,
        "parallel.precision": args.precision,
        "metrics.wandb": "disabled",
        **dict(setting.split("=", 1) for setting in args.settings),
    }
    options = [str(word) for key, value in words.items() for word in (f"--{key}", value)]
    triaxial("train", "reward_smollm2", *options)
    files = ["--rewards", folder / "rewards.jsonl", "--plot", folder / "calibration.svg"]
    files += ["--dtype", "bfloat16" if args.precision == "bf16" else "float32"]
    triaxial("score", folder / "run", "--rankings", folder / "held_out.jsonl", *files)
    return 0


def reward_words(corpus: Path, *, row_tokens: int, rows: int, epochs: float) -> dict[str, object]:
    """Settings for `triaxial train reward_smollm2` on the first 16 blocks, of which the last 4 and the head learn.

    A step has `rows` rows of `row_tokens` tokens, or of the longest ranking if that is longer.
    """
    tokens = TokenFile(corpus / "train")
    longest = int(np.diff(tokens.document_starts()).max())
    seq_len = -(-max(longest, row_tokens) // ROW_MULTIPLE) * ROW_MULTIPLE
    tokens_read = epochs * PackedDocuments(seq_len).of(tokens).count(tokens) * seq_len
    corpora = {
        key: f'[{{ path = "{corpus}/{key}", streams = {{ marks = "{corpus}/{key}_marks" }} }}]'
        for key in ("train", "validation")
    }
    return {
        "model.n_layers": 16,
        "objective.pool": "mean",
        "optimizer.frozen": '["embed.*", "blocks.[0-9].*", "blocks.1[01].*"]',
        "optimizer.learning_rate": 2e-4,
        "optimizer.groups": '[{ parameters = ["head.*"], lr_scale = 5.0 }]',
        "data.seq_len": seq_len,
        "data.sampling": "packed",
        "data.train": corpora["train"],
        "data.validation": corpora["validation"],
        "batch.global_batch_tokens": rows * seq_len,
        "train.epochs": epochs,
        "train.evaluate_every_steps": 1000,
        "schedule.warmup_tokens": int(tokens_read / 20),
        "checkpoint.every_steps": 15,
        "checkpoint.keep_last": 1,
    }


def spread(prompt: Prompt, n: int) -> Prompt:
    """At most n outputs of a prompt, spread over its ranking."""
    order = np.argsort(prompt.scores)
    kept = order[np.unique(np.linspace(0, len(order) - 1, n).round().astype(int))]
    return Prompt(prompt.text, tuple(prompt.outputs[i] for i in kept), prompt.scores[kept])


def write(path: Path, prompts: list[Prompt]) -> None:
    lines = [
        {
            "prompt": prompt.text,
            "completions": [
                {"text": text, "score": score}
                for text, score in zip(prompt.outputs, prompt.scores.tolist(), strict=True)
            ],
        }
        for prompt in prompts
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def triaxial(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "launch.main", *map(str, words)], check=True)


def compare(folder: Path) -> dict[str, Any]:
    """The accuracies of the reward model and the baselines, and differences, over the pairs that the model scored."""
    training, held_out = load()
    rewards = [json.loads(line) for line in (folder / "rewards.jsonl").read_text().splitlines()]
    asked = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
    assert len(rewards) == len(asked), "every held-out prompt has a line of rewards"
    held_out = held_out[: len(asked)]
    model = []
    for prompt, line in zip(held_out, rewards, strict=True):
        assert np.allclose(line["scores"], prompt.scores), "the rewards are in the order of the outputs"
        model.append(np.array([np.nan if reward is None else reward for reward in line["rewards"]]))
    right = {
        "reward_model": right_of(held_out, model),
        "longer": right_of(held_out, lengths(held_out)),
        "tfidf_and_length": right_of(held_out, fitted(training, held_out)),
    }
    result: dict[str, Any] = {"prompts": len(held_out), "pairs": sum(len(each) for each in right["reward_model"])}
    result |= {name: interval(each) for name, each in right.items()}
    for name in ("longer", "tfidf_and_length"):
        differences = [a - b for a, b in zip(right["reward_model"], right[name], strict=True)]
        result[f"reward_model_minus_{name}"] = interval(differences)
    return result


if __name__ == "__main__":
    sys.exit(main())
