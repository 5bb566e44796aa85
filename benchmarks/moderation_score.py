"""Texts/s of `triaxial moderate score`'s scorer beside transformers, on the same trunk with the same linear head.

    python benchmarks/moderation_score.py --hf FOLDER --texts FILE.jsonl [--field text] [--count 100] [--layers 30]
        [--dtype float32] [--rounds 5] [--threads 1] [--peer-tokens 512] [--json FILE]

FOLDER is a Llama of Hugging Face, such as SmolLM2-135M. Both get the same texts, the same random head of eight
categories, the same dtype and threads, no gradient, and their own tokenizer. Both cut long texts into the same windows
and take the largest score. The peer sorts windows by length and pads batches of at most --peer-tokens tokens, or of 32
windows if it is 0; with --peer-tokens 1 it takes each window alone, without padding. With --pipelines, two more
contenders are what users write: transformers' pipeline("text-classification") on the texts in the file's order, with
batch_size 32 and 1; they cannot cut windows, so only texts that fit in one are taken. Time is that of the processor
(`cpu_s`), so that other work on the machine counts little. Scores are compared: 1e-5 in fp32. The last line printed is
one JSON object.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import side_by_side

N_CATEGORIES, SEED, END = 8, 0, "<|endoftext|>"
OURS, PEER = "triaxial", "transformers"
PIPELINES = {"pipeline, batches of 32": 32, "pipeline, one by one": 1}


def texts_of(args: argparse.Namespace) -> list[str]:
    """Texts spread over the file. They are never printed."""
    from gpt.moderation.label_files import read_records
    from gpt.tokenizer.tokenizers import load_tokenizer

    found = [record.get(args.field) for _, record in read_records(args.texts)]
    texts = [text for text in found if isinstance(text, str) and text.strip()]
    if args.pipelines:
        encoded = load_tokenizer(args.hf / "tokenizer.json").encode_arrays(texts)
        texts = [text for text, ids in zip(texts, encoded, strict=True) if len(ids) < args.window]
    return texts[:: max(1, len(texts) // args.count)][: args.count]


def head_weights(width: int) -> Any:
    import torch

    return torch.randn(N_CATEGORIES, width, generator=torch.Generator().manual_seed(SEED)) * 0.05


def ours(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    import torch

    from gpt.convert.hugging_face.names import from_hugging_face
    from gpt.convert.hugging_face.source import open_source
    from gpt.model.gpt import GPT
    from gpt.moderation.classifier import Classifier
    from gpt.moderation.config import ClassifierConfig
    from gpt.tokenizer.tokenizers import load_tokenizer
    from launch.moderation.classifier import OpenedClassifier
    from launch.runs.open_engine import LocalScorer, OpenedEngine, packed_for_scoring
    from launch.runs.saved_run import DTYPES

    torch.set_num_threads(args.threads)
    source = open_source(args.hf)
    config = replace(source.config, n_layers=args.layers or source.config.n_layers)
    objective = Classifier(ClassifierConfig(head="linear", parents=False))
    module = GPT(config, head=objective.head(config))
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, tensor in from_hugging_face(source.config, source.read()):
            if name in parameters:
                parameters[name].copy_(tensor)
        parameters["head.classes.weight"].copy_(head_weights(config.d_model))
        parameters["head.classes.bias"].zero_()
    module = module.to(DTYPES[args.dtype]).eval().requires_grad_(False)
    file = args.hf / "tokenizer.json"
    classifier = OpenedClassifier(
        run=OpenedEngine(
            engine=packed_for_scoring(LocalScorer(module, objective)),
            objective=objective,
            run_directory=args.hf,
            checkpoint=None,
            model=config,
            data_config=None,
            tokenizer=load_tokenizer(file),
            tokenizer_file=file,
        ),
        taxonomy=objective.taxonomy,
        version="benchmark",
        window=args.window,
    )
    texts = texts_of(args)

    def block(some: list[str] = texts) -> dict[str, Any]:
        tokens = classifier.encoded(some)
        return {"scores": classifier.scores_of(tokens).tolist(), "texts": len(some), "tokens": sum(map(len, tokens))}

    block(texts[:4])
    return block


def peer_model(args: argparse.Namespace) -> tuple[Any, Any]:
    """transformers' classifier with the same head, and its tokenizer."""
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    config = transformers.AutoConfig.from_pretrained(args.hf, local_files_only=True)
    config.num_labels = N_CATEGORIES
    config.num_hidden_layers = args.layers or config.num_hidden_layers
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        args.hf, config=config, dtype=getattr(torch, args.dtype), local_files_only=True
    ).eval()
    with torch.no_grad():
        model.score.weight.copy_(head_weights(config.hidden_size))
    return model, transformers.AutoTokenizer.from_pretrained(args.hf, local_files_only=True)


def pipeline(args: argparse.Namespace, size: int) -> Callable[[], dict[str, Any]]:
    """What a user of transformers writes. The tokenizer cuts and pads; the end-of-document token is in the text."""
    import transformers

    model, tokenizer = peer_model(args)
    tokenizer.truncation_side = "left"  # keeps the end-of-document token
    pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    texts = [text + END for text in texts_of(args)]
    names = [model.config.id2label[i] for i in range(N_CATEGORIES)]

    def block(some: list[str] = texts) -> dict[str, Any]:
        found = pipe(
            some, batch_size=size, top_k=None, function_to_apply="sigmoid", truncation=True, max_length=args.window
        )
        rows = [{one["label"]: one["score"] for one in row} for row in found]
        return {"scores": [[row[name] for name in names] for row in rows], "texts": len(some)}

    block(texts[:4])
    return block


def theirs(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    import numpy as np
    import torch

    from launch.moderation.windows import largest, windows_of

    model, tokenizer = peer_model(args)
    end = tokenizer.convert_tokens_to_ids(END)
    pad = model.config.pad_token_id
    assert pad != end, "the end-of-document token must not be the padding"
    texts = texts_of(args)

    @torch.inference_mode()
    def block(some: list[str] = texts) -> dict[str, Any]:
        encoded = tokenizer(some, add_special_tokens=False)["input_ids"]
        windows = [windows_of(np.array(ids, dtype=np.int64), window=args.window, end=end) for ids in encoded]
        rows = [one.tolist() for of_text in windows for one in of_text]
        scores: dict[int, list[float]] = {}
        padded = 0
        for batch in batches(sorted(range(len(rows)), key=lambda i: len(rows[i])), rows, args.peer_tokens):
            width = max(len(rows[i]) for i in batch)
            padded += width * len(batch)
            ids = torch.full((len(batch), width), pad)
            mask = torch.zeros((len(batch), width), dtype=torch.long)
            for row, i in enumerate(batch):
                ids[row, : len(rows[i])], mask[row, : len(rows[i])] = torch.tensor(rows[i]), 1
            found = torch.sigmoid(model(input_ids=ids, attention_mask=mask, use_cache=False).logits.double())
            scores |= dict(zip(batch, found.tolist(), strict=True))
        of_windows = np.array([scores[i] for i in range(len(rows))])
        found = largest(of_windows, [len(of_text) for of_text in windows])
        return {"scores": found.tolist(), "texts": len(some), "tokens": sum(map(len, rows)), "padded_tokens": padded}

    block(texts[:4])
    return block


def batches(order: list[int], rows: list[list[int]], tokens: int) -> list[list[int]]:
    """Neighbours in `order`, which rises in length: at most `tokens` padded tokens, or 32 texts if it is 0."""
    found: list[list[int]] = [[]]
    for i in order:
        size = len(found[-1]) + 1
        if found[-1] and (size * len(rows[i]) > tokens if tokens else size > 32):
            found.append([])
        found[-1].append(i)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hf", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--field", default="text")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer-tokens", type=int, default=512)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pipelines", action="store_true", help="two more contenders, see above")
    parser.add_argument("role", nargs="?", choices=(OURS, PEER, *PIPELINES))
    parser.add_argument("serve", nargs="?")
    args = parser.parse_args()
    if args.role:
        builds = {OURS: ours, PEER: theirs}
        side_by_side.serve(
            lambda: builds[args.role](args) if args.role in builds else pipeline(args, PIPELINES[args.role])
        )
        return 0
    words, names = sys.argv[1:], (OURS, PEER, *(PIPELINES if args.pipelines else ()))
    commands = {name: [sys.executable, __file__, *words, name, "serve"] for name in names}
    results = side_by_side.alternate(commands, rounds=args.rounds, threads=args.threads, report=print)
    spans = {name: [answers[name]["cpu_s"] for answers in results] for name in commands}
    n = results[0][OURS]["texts"]
    largest = {
        name: max(
            abs(a - b)
            for one, other in zip(results[0][OURS]["scores"], results[0][name]["scores"], strict=True)
            for a, b in zip(one, other, strict=True)
        )
        for name in names[1:]
    }
    result = {
        "texts": n,
        "tokens": {name: results[0][PEER][name] for name in ("tokens", "padded_tokens")},
        "texts_per_cpu_s": {name: n / statistics.median(found) for name, found in spans.items()},
        "ratios": side_by_side.speed_ratios(spans, OURS),
        "largest_difference": largest,
        **{name: getattr(args, name) for name in ("dtype", "threads", "peer_tokens", "window", "layers", "rounds")},
    }
    text = json.dumps(side_by_side.rounded(result))
    if args.json:
        args.json.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
