"""Whether our quality rules decide as datatrove's do, text by text, rule set by rule set and rule by rule."""

import dataclasses
import hashlib
import json
import os
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from data_prep.documents.words import TextView
from data_prep.filters.quality import QualityConfig, RuleSet, apply_rule_set
from gpt.errors import ConfigError

PEER = Path(__file__).with_name("datatrove_peer.py")
_FEW_STOP_WORDS = "gopher_too_few_stop_words"  # datatrove's word says the opposite of what it found
_THEIR_REASONS = {"gopher_enough_stop_words": _FEW_STOP_WORDS}
Rules = dict[str, tuple[RuleSet, dict[str, Any]]]  # a name: the rule set and the settings that are not the defaults

RULE_SETS: Rules = {name: (name, {}) for name in get_args(RuleSet)}
RULE_SETS["c4 as in FineWeb"] = ("c4", {"filter_no_terminal_punct": False})

_GOPHER = {
    "min_doc_words": 50,
    "max_doc_words": 100_000,
    "min_avg_word_length": 3,
    "max_avg_word_length": 10,
    "max_symbol_word_ratio": 0.1,
    "max_bullet_lines_ratio": 0.9,
    "max_ellipsis_lines_ratio": 0.3,
    "min_alpha_words_ratio": 0.8,
    "min_stop_words": 2,
}
_REPETITION = {"dup_line_frac": 0.3, "dup_para_frac": 0.3, "dup_line_char_frac": 0.2, "dup_para_char_frac": 0.2}
_TOP = ((2, 0.2), (3, 0.18), (4, 0.16))
_DUPLICATED = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1))
_C4 = {
    "remove_citations": True,
    "filter_no_terminal_punct": True,
    "min_num_sentences": 5,
    "min_words_per_line": 3,
    "max_word_length": 1000,
    "filter_lorem_ipsum": True,
    "filter_javascript": True,
    "filter_curly_bracket": True,
    "filter_policy": True,
}
_FINEWEB = {"line_punct_thr": 0.12, "short_line_thr": 0.67, "char_duplicates_ratio": 0.01, "new_line_ratio": 0.3}
_FINEWEB_OFF = {"line_punct_thr": 0.0, "short_line_thr": 999.0, "char_duplicates_ratio": 999.0, "new_line_ratio": 1e9}


def single_rules() -> Rules:
    """Every rule alone, all others of its set turned off."""
    rules: Rules = {}
    gopher_off = dict.fromkeys(_GOPHER, 0)
    for name, value in _GOPHER.items():
        rules[f"gopher_quality.{name}"] = "gopher_quality", {**gopher_off, name: value}
    lines_off: dict[str, Any] = dict.fromkeys(_REPETITION, 0.0)
    off = {**lines_off, "top_n_grams": (), "dup_n_grams": ()}
    for name, value in _REPETITION.items():
        rules[f"gopher_repetition.{name}"] = "gopher_repetition", {**off, name: value}
    for key, pairs in (("top_n_grams", _TOP), ("dup_n_grams", _DUPLICATED)):
        for pair in pairs:
            rules[f"gopher_repetition.{key}.{pair[0]}"] = "gopher_repetition", {**off, key: (pair,)}
    c4_off = {name: False if isinstance(value, bool) else -1 for name, value in _C4.items()}
    c4_off["min_num_sentences"] = 1  # with -1 datatrove passes on texts of which no line is left, and we do not
    for name, value in _C4.items():
        rules[f"c4.{name}"] = "c4", {**c4_off, name: value}
    for name, value in _FINEWEB.items():
        rules[f"fineweb.{name}"] = "fineweb", {**_FINEWEB_OFF, name: value}
    return rules


def our_decisions(texts: Sequence[str], rules: Rules) -> list[dict[str, list[str]]]:
    """For each text and each configuration: [reason or "", digest of the text that is left]."""
    configs = {name: (rule_set, _config(rule_set, settings)) for name, (rule_set, settings) in rules.items()}
    decisions = []
    for text in texts:
        view = TextView(text)  # shared, as the stage shares it
        found = {}
        for name, (rule_set, config) in configs.items():
            left, why = apply_rule_set(view, rule_set, config)
            found[name] = ["" if why is None else why[0], text_digest(left.text)]
        decisions.append(found)
    return decisions


def text_digest(text: str) -> str:
    """The peer's short digest of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def their_decisions(
    python: Path, texts: Sequence[str], rules: Rules, *, words: str, folder: Path
) -> list[dict[str, list[str]]]:
    """The same from datatrove, with our words (`ours`) or its own (`spacy`)."""
    request, answer = folder / "texts.json", folder / f"{words}.json"
    request.write_text(json.dumps({"texts": list(texts), "rules": rules}))
    root = PEER.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [str(python), str(PEER), "decide", str(request), str(answer), "--words", words]
    if subprocess.run(command, env=environment).returncode:
        raise ConfigError(f"--datatrove {python}: datatrove's rules failed; what they said is above")
    decisions = json.loads(answer.read_text())
    for found in decisions:
        for decision in found.values():
            decision[0] = _THEIR_REASONS.get(decision[0], decision[0])
    return list(decisions)


def agreement(ours: list[dict[str, list[str]]], theirs: list[dict[str, list[str]]]) -> dict[str, dict[str, Any]]:
    """By configuration: shares of texts with the same decision, the same reason and the same text left where both keep
    it; how often each side drops; and the pairs of reasons where the decisions differ. Texts on which datatrove fails
    (those without a word, where nothing else drops them) are only counted."""
    result = {}
    for name in ours[0]:
        everything = [(a[name], b[name]) for a, b in zip(ours, theirs, strict=True)]
        pairs = [(a, b) for a, b in everything if not b[0].endswith("Error")]
        kept = [(a, b) for a, b in pairs if not a[0] and not b[0]]
        unlike = Counter(f"{a[0] or 'kept'} / {b[0] or 'kept'}" for a, b in pairs if bool(a[0]) != bool(b[0]))
        result[name] = {
            "texts": len(pairs),
            "they_failed": len(everything) - len(pairs),
            "same_decision": sum(bool(a[0]) == bool(b[0]) for a, b in pairs) / len(pairs),
            "same_reason": sum(a[0] == b[0] for a, b in pairs) / len(pairs),
            "same_text_left": sum(a[1] == b[1] for a, b in kept) / max(len(kept), 1),
            "dropped_by_us": sum(bool(a[0]) for a, _ in pairs),
            "dropped_by_them": sum(bool(b[0]) for _, b in pairs),
            "differing": dict(unlike),
        }
    return result


def _config(rule_set: RuleSet, settings: dict[str, Any]) -> QualityConfig:
    default = getattr(QualityConfig(), rule_set)
    return QualityConfig(**{rule_set: dataclasses.replace(default, **settings)})
