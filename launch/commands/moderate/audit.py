"""`triaxial moderate audit`: measure the quality of labels, and choose the texts that an auditor must look at."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from gpt.errors import ConfigError, escaped
from gpt.files.atomic import replace_file
from gpt.moderation.agreement import agreements
from gpt.moderation.label_files import read_labelled, write_labelled
from gpt.moderation.labels import LabelledText, label_matrix, merged
from gpt.moderation.loop.alpha import krippendorff_alpha
from gpt.moderation.loop.audit import PER_CATEGORY, CategoryAudit, audit_sample, category_audits
from gpt.moderation.loop.label_errors import (
    MAX_WRONG_SHARE,
    confident_errors,
    disagreements,
    fold_of,
    relabel_verdict,
    suspicion,
)
from gpt.moderation.taxonomy import Taxonomy, read_taxonomy
from gpt.telemetry.screen import counted
from launch.moderation.loop.joined import common, joined, labelled_texts
from launch.processes.terminal import table_console
from launch.reports.written import add_json_option, json_destination


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("labels", type=Path, nargs="+", metavar="LABELS", help="files of labelled texts")
    parser.add_argument("--taxonomy", type=Path, required=True, metavar="FILE", help="a TOML file, or a shipped name")
    parser.add_argument("--scores", type=Path, nargs="+", metavar="FILE", help="scores of the labelled texts")
    parser.add_argument(
        "--sample",
        type=Path,
        metavar="FILE.jsonl",
        help="write the texts for an auditor: of each category some labelled positives, and some others with a score "
        "above 0.5",
    )
    parser.add_argument(
        "--per-category", type=int, default=PER_CATEGORY, metavar="N", help=f"of each kind (default: {PER_CATEGORY})"
    )
    parser.add_argument("--auditor", type=Path, nargs="+", metavar="FILE", help="labels of the auditor, to measure F1")
    parser.add_argument(
        "--random-part",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="labels of the auditor for texts drawn at random: are more than 30%% wrong?",
    )
    parser.add_argument(
        "--halves", type=Path, metavar="FOLDER", help="write half0.jsonl and half1.jsonl, to train a classifier on each"
    )
    parser.add_argument(
        "--cross-fit",
        action="store_true",
        help="flag labels that contradict --scores, which must come from classifiers of the other half: this command "
        "trains nothing. `triaxial docs guides/moderation` has all commands, from --halves on",
    )
    parser.add_argument("--flagged", type=Path, metavar="FILE.jsonl", help="with --cross-fit: write the flagged texts")
    parser.add_argument("--seed", type=int, default=0, help="draws the halves and the sample (default: 0)")
    add_json_option(parser, "all measures")


def run(args: argparse.Namespace) -> int:
    _check(args)
    taxonomy = read_taxonomy(args.taxonomy)
    lines = [one for path in args.labels for one in read_labelled(path, taxonomy)]
    texts = merged(lines)
    result: dict[str, Any] = {"texts": len(texts)}
    with json_destination(args.json) as emit:
        result["agreement"] = agreement = _agreement(lines, taxonomy)
        if args.halves is not None:
            result["halves"] = _write_halves(args.halves, texts, taxonomy, seed=args.seed)
        if args.sample is not None:
            result["sample"] = _write_sample(args, texts, taxonomy)
        if args.auditor is not None:
            result["audit"] = _audit(texts, args.auditor, taxonomy)
        if args.random_part is not None:
            result["random_part"] = _random_part(texts, args.random_part, taxonomy)
        if args.cross_fit:
            result["cross_fit"] = _cross_fit(args, texts, taxonomy)
        if not agreement and len(result) == 2:
            print(
                f"{len(texts):,} labelled texts of fewer than two labellers, so there is no agreement to measure. Give "
                "--sample, --auditor, --random-part, --halves or --cross-fit"
            )
        emit(result)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.per_category < 1:
        raise ConfigError(f"--per-category {args.per_category} is invalid: it must be at least 1. Use {PER_CATEGORY}.")
    if not 0 <= args.seed < 1 << 63:
        raise ConfigError(f"--seed {args.seed} is invalid: it must be from 0 to 2^63 - 1. Use 0.")
    if args.cross_fit and args.scores is None:
        raise ConfigError(
            "--cross-fit needs --scores FILE FILE: of each half, by a classifier that you have trained on the other. "
            "This command trains nothing. See --halves, and `triaxial docs guides/moderation`"
        )
    if args.flagged is not None and not args.cross_fit:
        raise ConfigError("--flagged is only valid with --cross-fit.")


def _agreement(lines: Sequence[LabelledText], taxonomy: Taxonomy) -> dict[str, Any]:
    """Krippendorff's alpha by category over all labellers, and Cohen's kappa of each two."""
    by_labeller: dict[str, dict[str, LabelledText]] = {}
    for one in lines:
        if one.labeller:
            by_labeller.setdefault(one.labeller, {})[one.id] = one
    if len(by_labeller) < 2:
        return {}
    ids = sorted({one.id for one in lines})
    alphas: dict[str, float] = {}
    for category in taxonomy.ids:
        votes = [[_vote(by_labeller[who].get(one), category) for who in sorted(by_labeller)] for one in ids]
        alphas[category] = krippendorff_alpha(votes)
    pairs = agreements(
        {who: {id_: one.labels for id_, one in own.items()} for who, own in by_labeller.items()}, taxonomy.ids
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("category")
    for name in ("Krippendorff's alpha", "Cohen's kappa of pairs"):
        table.add_column(name, justify="right")
    for category, alpha in alphas.items():
        kappas = [one.kappa.estimate for one in pairs if one.category == category and one.n]
        known = [value for value in kappas if not np.isnan(value)]
        shown = f"{min(known):.2f} to {max(known):.2f}" if known else ""
        table.add_row(*map(Text, (category, "" if np.isnan(alpha) else f"{alpha:.2f}", shown)))
    table_console().print(table)
    return {"labellers": len(by_labeller), "alpha": alphas, "pairs": [asdict(one) for one in pairs]}


def _vote(text: LabelledText | None, category: str) -> float:
    label = None if text is None else text.labels.get(category)
    return float("nan") if label is None else float(label)


def _write_halves(folder: Path, texts: Sequence[LabelledText], taxonomy: Taxonomy, *, seed: int) -> list[int]:
    folder.mkdir(parents=True, exist_ok=True)
    folds = fold_of([one.id for one in texts], seed=seed)
    sizes = []
    for half in (0, 1):
        own = [one for one, fold in zip(texts, folds, strict=True) if fold == half]
        sizes.append(write_labelled(folder / f"half{half}.jsonl", own, taxonomy))
    print(
        f"wrote halves of {sizes[0]:,} and {sizes[1]:,} texts to {escaped(str(folder))}. Prepare and train on each, "
        "score the other, then give both files of scores with --cross-fit"
    )
    return sizes


def _write_sample(args: argparse.Namespace, texts: Sequence[LabelledText], taxonomy: Taxonomy) -> dict[str, int]:
    if args.scores is None:
        kept, labels, scores = list(texts), label_matrix(texts, taxonomy), None
    else:
        found = joined(texts, args.scores, taxonomy)
        kept, labels, scores = found.texts, found.labels, found.scores
    ids = [one.id for one in kept]
    chosen = audit_sample(ids, labels, scores, taxonomy.ids, per_category=args.per_category, seed=args.seed)
    by_id = {one.id: one for one in kept}
    _write(args.sample, [(by_id[one.id], {"pipeline": one.reason, "weight": 1.0}) for one in chosen])
    counts = {"labelled": 0, "scored": 0}
    for one in chosen:
        counts[one.reason.partition(":")[0]] += 1
    print(
        f"wrote {counted(len(chosen), 'text')} for the auditor: {counts['labelled']:,} labelled positive, "
        f"{counts['scored']:,} others with a score above 0.5"
    )
    return counts


def _write(path: Path, texts: Sequence[tuple[LabelledText, dict[str, Any]]]) -> None:
    """Write texts without their labels, so that the auditor judges for himself."""
    lines = [{"id": one.id, "text": one.text, "groups": dict(one.groups), **more} for one, more in texts]
    replace_file(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _audit(texts: Sequence[LabelledText], auditor: Sequence[Path], taxonomy: Taxonomy) -> list[dict[str, Any]]:
    own, his = _both(texts, auditor, taxonomy)
    found = category_audits(own, his, taxonomy.ids)
    table_console().print(_audit_table(found))
    return [asdict(one) for one in found]


def _audit_table(found: Sequence[CategoryAudit]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("category")
    for name in ("audited", "F1, 95%", "precision, 95%", "recall, 95%"):
        table.add_column(name, justify="right")
    for one in found:
        cells = [one.category, f"{one.audited:,}"]
        for interval in (one.f1, one.precision, one.recall):
            bounds = "" if np.isnan(interval.low) else f" ({interval.low:.2f}-{interval.high:.2f})"
            cells.append("" if np.isnan(interval.estimate) else f"{interval.estimate:.2f}{bounds}")
        table.add_row(*map(Text, cells))
    return table


def _random_part(texts: Sequence[LabelledText], auditor: Sequence[Path], taxonomy: Taxonomy) -> dict[str, Any]:
    own, his = _both(texts, auditor, taxonomy)
    found = {name: relabel_verdict(own[:, i], his[:, i]) for i, name in enumerate(taxonomy.ids)}
    for name, one in found.items():
        if one.checked:
            verdict = "label everything again" if one.relabel_all else f"at most {MAX_WRONG_SHARE:.0%}: keep the labels"
            print(
                f"{name}: {one.wrong:,} of {one.checked:,} labels of the random part are wrong "
                f"({one.share.estimate:.0%}, 95% {one.share.low:.0%}-{one.share.high:.0%}); {verdict}"
            )
    return {name: asdict(one) for name, one in found.items()}


def _both(texts: Sequence[LabelledText], auditor: Sequence[Path], taxonomy: Taxonomy) -> tuple[Any, Any]:
    audited = {one.id: one for one in labelled_texts(auditor, taxonomy)}
    own = common(texts, audited, where=f"{auditor[0]} has none of {{}}. Audit texts of these labels: see --sample.")
    return label_matrix(own, taxonomy), label_matrix([audited[one.id] for one in own], taxonomy)


def _cross_fit(args: argparse.Namespace, texts: Sequence[LabelledText], taxonomy: Taxonomy) -> dict[str, Any]:
    """Flag labels by both methods, and write the flagged texts, those with the most suspicious label first."""
    found = joined(texts, args.scores, taxonomy)
    worst = np.zeros(len(found.texts))
    counts: dict[str, Any] = {}
    flagged_by: list[list[str]] = [[] for _ in found.texts]
    for i, category in enumerate(taxonomy.ids):
        labels, scores = found.labels[:, i], found.scores[:, i]
        different, confident = disagreements(labels, scores), confident_errors(labels, scores)
        either = different | confident
        worst = np.maximum(worst, np.where(either, suspicion(labels, scores), 0.0))
        for row in np.flatnonzero(either):
            flagged_by[row].append(category)
        counts[category] = {
            "known": int((~np.isnan(labels)).sum()),
            "disagreements": int(different.sum()),
            "confident_learning": int(confident.sum()),
        }
        print(
            f"{category}: {int(different.sum()):,} of {counts[category]['known']:,} labels disagree with the cross-fit "
            f"score, {int(confident.sum()):,} are wrong by confident learning"
        )
    order = [int(i) for i in np.argsort(-worst, kind="stable") if flagged_by[i]]
    if args.flagged is not None:
        rows = [(found.texts[i], {"pipeline": f"flagged:{'+'.join(flagged_by[i])}", "weight": 1.0}) for i in order]
        _write(args.flagged, rows)
        print(f"wrote {counted(len(order), 'text')} to label again, the most suspicious first")
    return {"categories": counts, "flagged": [found.texts[i].id for i in order]}
