"""`triaxial moderate generate`: synthetic labelled texts by a language model or templates, and their noise check."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gpt.errors import ConfigError, escaped
from gpt.moderation.label_files import read_labelled, read_records, write_labelled
from gpt.moderation.labels import LabelledText, label_matrix, text_id
from gpt.moderation.loop.synthetic import MIN_AGREEMENT, noise_check
from gpt.moderation.probes.counterfactuals import counterfactuals
from gpt.moderation.taxonomy import Taxonomy, read_taxonomy
from launch.commands.moderate.select import check_category
from launch.config.run_arguments import add_device_arguments
from launch.moderation.loop.joined import common, joined, labelled_texts
from launch.reports.written import add_json_option, json_destination


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    model = actions.add_parser("model", help="let a language model write texts of a category")
    model.add_argument("run", type=Path, metavar="RUN", help="a language model's run directory")
    model.add_argument("--n", type=int, default=100, help="texts to ask for (default: 100)")
    model.add_argument("--negative", action="store_true", help="texts that are not of the category")
    model.add_argument("--examples", type=Path, nargs="+", default=[], metavar="FILE", help="labelled texts: few-shot")
    model.add_argument("--shots", type=int, default=5, help="examples in a prompt (default: 5)")
    model.add_argument("--chat", action="store_true", help="ask an assistant, in the chat format of the run")
    model.add_argument("--temperature", type=float, default=1.0, help="(default: 1)")
    model.add_argument("--top-p", type=float, default=0.95, help="(default: 0.95)")
    model.add_argument("--max-new-tokens", type=int, default=60, metavar="N", help="tokens of a text (default: 60)")
    add_device_arguments(model)
    templates = actions.add_parser("templates", help="fill templates with words, for texts free of counterfactual bias")
    templates.add_argument("--templates", type=Path, required=True, metavar="FILE", help="as for `moderate probe`")
    templates.add_argument("--words", type=Path, required=True, metavar="FILE", help="as for `moderate probe`")
    templates.add_argument(
        "--fillings", type=int, default=4, help="fillings of the other slots by template (default: 4)"
    )
    check = actions.add_parser("check", help="refuse noisy synthetic texts: compare a sample with an auditor or scores")
    check.add_argument("texts", type=Path, metavar="FILE", help="the synthetic texts")
    source = check.add_mutually_exclusive_group(required=True)
    source.add_argument("--auditor", type=Path, nargs="+", metavar="FILE", help="labels of an auditor for a sample")
    source.add_argument("--scores", type=Path, nargs="+", metavar="FILE", help="a classifier's scores of the texts")
    check.add_argument(
        "--min-agreement", type=float, default=MIN_AGREEMENT, metavar="P", help=f"(default: {MIN_AGREEMENT})"
    )
    for action in (model, templates, check):
        action.add_argument(
            "--taxonomy", type=Path, required=True, metavar="FILE", help="a TOML file, or a shipped name"
        )
        add_json_option(action, "the counts")
    for action in (model, templates):
        action.add_argument("--category", required=True, metavar="ID", help="the category of the texts")
        action.add_argument("--output", type=Path, required=True, metavar="FILE.jsonl", help="labelled texts")
        action.add_argument("--seed", type=int, default=0, help="the same seed gives the same texts (default: 0)")


def run(args: argparse.Namespace) -> int:
    taxonomy = read_taxonomy(args.taxonomy)
    with json_destination(args.json) as emit:
        if args.action == "check":
            emit(_checked(args, taxonomy))
            return 0
        check_category("--category", args.category, taxonomy.ids)
        for name, least in (("n", 1), ("shots", 1), ("max_new_tokens", 1), ("fillings", 1), ("seed", 0)):
            value = getattr(args, name, least)
            if value < least:
                raise ConfigError(f"--{name.replace('_', '-')} {value} is invalid: it must be at least {least}.")
        texts, asked = _written(args, taxonomy) if args.action == "model" else _filled(args)
        if not texts:
            raise ConfigError(f"{asked:,} answers have no usable text. Use another model, or --temperature 1.")
        write_labelled(args.output, texts, taxonomy)
        print(
            f"wrote {len(texts):,} of {asked:,} texts of {args.category} to {escaped(str(args.output))}. Check a "
            "sample with `triaxial moderate generate check` before you train on them"
        )
        emit({"asked": asked, "written": len(texts), "category": args.category})
    return 0


def _written(args: argparse.Namespace, taxonomy: Taxonomy) -> tuple[list[LabelledText], int]:
    """Texts of a language model, each labelled with what it was asked for."""
    if args.temperature <= 0:
        raise ConfigError(f"--temperature {args.temperature} is invalid: all texts would be equal. Use 1.")
    category, positive = taxonomy.categories[taxonomy.index(args.category)], not args.negative
    known = [one.text for one in labelled_texts(args.examples, taxonomy) if one.labels.get(args.category) is positive]
    if args.examples and not known:
        kind = "positive" if positive else "negative"
        raise ConfigError(f"--examples {args.examples[0]} has no text that is labelled {kind} in {args.category}.")
    with args.imports():
        from launch.moderation.loop.asked_texts import asked_texts
    answers = asked_texts(args, category, known)
    source = f"synthetic {'few-shot' if known else 'zero-shot'}"
    return [_labelled(text, args.category, positive, source) for text in answers if text is not None], args.n


def _filled(args: argparse.Namespace) -> tuple[list[LabelledText], int]:
    """Texts of templates. A toxic template is positive in the category, whatever group its words name."""
    sentences = counterfactuals(
        [fields for _, fields in read_records(args.templates)],
        [fields for _, fields in read_records(args.words)],
        fillings=args.fillings,
        seed=args.seed,
        where=str(args.templates),
    )
    by_id = {text_id(one.text): one for one in sentences}  # two fillings may give one text
    texts = [_labelled(one.text, args.category, one.positive, "synthetic template") for one in by_id.values()]
    return texts, len(sentences)


def _labelled(text: str, category: str, positive: bool, source: str) -> LabelledText:
    return LabelledText(text_id(text), text, {category: positive}, labeller="synthetic", source=source)


def _checked(args: argparse.Namespace, taxonomy: Taxonomy) -> dict[str, Any]:
    """Compare the labels with others. ConfigError: fewer agree than --min-agreement, or none can be compared."""
    if not 0 < args.min_agreement <= 1:
        raise ConfigError(
            f"--min-agreement {args.min_agreement} is invalid: it must be above 0 and at most 1. Use 0.9."
        )
    texts = list(read_labelled(args.texts, taxonomy))
    labels, others = _compared(args, texts, taxonomy)
    found = noise_check(labels, others, min_agreement=args.min_agreement)
    share = f"{found.share.estimate:.1%} (95% {found.share.low:.1%}-{found.share.high:.1%})"
    if not found.checked:
        raise ConfigError(f"{args.texts} has no label that the other file has too. Label or score some of its texts.")
    if not found.accepted:
        raise ConfigError(
            f"{args.texts} is refused: {share} of {found.checked:,} labels agree; at least {args.min_agreement:.0%} "
            "must. Noisy texts hurt a classifier. Correct them with `triaxial moderate label`, or leave them out."
        )
    print(f"{share} of {found.checked:,} labels agree: the texts may be mixed in")
    return asdict(found)


def _compared(args: argparse.Namespace, texts: Sequence[LabelledText], taxonomy: Taxonomy) -> tuple[Any, Any]:
    if args.auditor is not None:
        audited = {one.id: one for one in labelled_texts(args.auditor, taxonomy)}
        own = common(texts, audited, where=f"{args.auditor[0]} has none of {{}}. Label some of these texts.")
        return label_matrix(own, taxonomy), label_matrix([audited[one.id] for one in own], taxonomy)
    found = joined(texts, args.scores, taxonomy)
    return found.labels, np.where(found.scores >= 0.5, 1.0, 0.0)
