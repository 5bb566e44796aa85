"""The two forms of requests and answers: OpenAI's moderation API and Perspective's."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.documents.shards import whole_text
from gpt.errors import ConfigError, did_you_mean
from gpt.files.json_text import decode_json
from launch.moderation_server.batches import Scores, TextScorer
from launch.moderation_server.limits import Refused, ServerLimits, invalid

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.@-]{0,63}")


def decode_request(body: bytes) -> dict[str, Any]:
    """A request's JSON object. Refused: it is not UTF-8, not JSON, or something else. The body is not quoted."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise invalid(f"the request is not UTF-8: byte {error.start} is wrong", code="not_utf8") from None
    try:
        found = decode_json(text)
    except ValueError:
        raise invalid("the request is not valid JSON", code="not_json") from None
    if not isinstance(found, dict):
        raise invalid("the request must be a JSON object", code="not_an_object")
    return found


def checked_text(value: object, param: str, limits: ServerLimits) -> str:
    """A text of a request; half a surrogate pair becomes U+FFFD. Refused: it is no text, empty or too long."""
    if not isinstance(value, str):
        raise invalid(f"{param} must be a string", param=param)
    text = whole_text(value)
    if not text.strip():
        raise invalid(f"{param} is empty. Send a text", param=param, code="empty_text")
    n_bytes = len(text.encode())
    if n_bytes > limits.max_text_bytes:
        message = f"{param} has {n_bytes} bytes, at most {limits.max_text_bytes} are allowed. Split it"
        raise Refused(413, "text_too_long", message, param=param)
    return text


def category_names(categories: Sequence[str], given: Sequence[str]) -> dict[str, str]:
    """The category of each name in requests and answers: every category's own, and NAME=CATEGORY as given.

    ConfigError: no such category, or a name is given twice.
    """
    found = dict[str, str]()
    for text in given:
        name, equals, category = text.partition("=")
        if not (name and equals):
            raise ConfigError(f"--name {text} is invalid: must be NAME=CATEGORY, such as TOXICITY={categories[0]}")
        if category not in categories:
            meant = did_you_mean(category, categories) or f"use one of {', '.join(categories)}"
            raise ConfigError(f"--name {text} is invalid: the taxonomy has no category {category!r}; {meant}")
        if name in found:
            raise ConfigError(f"--name {text} is invalid: {name} is given twice")
        found[name] = category
    return {**{category: category for category in categories if category not in found}, **found}


# OpenAI: POST /v1/moderations


@dataclass(frozen=True)
class ModerationRequest:
    """`texts` in `groups`: the texts of a group are parts of one input and get one result, of the largest scores."""

    texts: tuple[str, ...]
    groups: tuple[int, ...]  # the number of texts of each input


def moderation_request(body: Mapping[str, Any], limits: ServerLimits) -> ModerationRequest:
    """Read `input`: a text, a list of texts, or a list of parts {"type": "text", "text": ...} of one input."""
    if "input" not in body:
        raise invalid("input is missing: must be a text or a list of texts", param="input")
    given = body["input"]
    if isinstance(given, str):
        return ModerationRequest((checked_text(given, "input", limits),), (1,))
    if not isinstance(given, list):
        raise invalid("input must be a text or a list of texts", param="input")
    if not given:
        raise invalid("input is an empty list. Send a text", param="input", code="empty_text")
    if len(given) > limits.max_texts:
        message = f"input has {len(given)} texts, at most {limits.max_texts} are allowed. Send several requests"
        raise Refused(413, "too_many_texts", message, param="input")
    is_parts = all(isinstance(part, dict) for part in given)
    texts = tuple(
        checked_text(_part_text(part, i) if is_parts else part, f"input[{i}]", limits) for i, part in enumerate(given)
    )
    return ModerationRequest(texts, (len(texts),) if is_parts else (1,) * len(texts))


def _part_text(part: Mapping[str, Any], number: int) -> object:
    if part.get("type") != "text":
        param = f"input[{number}].type"
        raise invalid(f"{param} must be 'text': this model reads no pictures", param=param)
    return part.get("text")


def moderation_answer(
    request: ModerationRequest, scores: Scores, scorer: TextScorer, names: Mapping[str, str], *, id: str
) -> dict[str, Any]:
    """The answer in OpenAI's form. `scores`: (n, c) of the request's texts. `names`: see `category_names`."""
    parts = np.split(scores, np.cumsum(request.groups)[:-1])
    results = [_result(part.max(axis=0).tolist(), scorer, names) for part in parts]
    return {"id": id, "model": scorer.version, "results": results}


def _result(scores: Sequence[float], scorer: TextScorer, names: Mapping[str, str]) -> dict[str, Any]:
    of_category = dict(zip(scorer.categories, scores, strict=True))
    found = {name: of_category[category] for name, category in names.items()}
    flags = {name: score >= scorer.thresholds[names[name]] for name, score in found.items()}
    return {
        "flagged": any(flags.values()),
        "categories": flags,
        "category_scores": found,
        "category_applied_input_types": {name: ["text"] for name in found},
    }


# Perspective: POST /v1alpha1/comments:analyze


@dataclass(frozen=True)
class AnalyzeRequest:
    """`thresholds`: for each requested attribute, the least score that is answered."""

    text: str
    thresholds: Mapping[str, float]
    languages: tuple[str, ...]
    client_token: str | None


def analyze_request(body: Mapping[str, Any], attributes: Mapping[str, str], limits: ServerLimits) -> AnalyzeRequest:
    """Read `comment.text` and `requestedAttributes`. Refused: one is missing, or an attribute is unknown."""
    comment = body.get("comment")
    if not isinstance(comment, dict):
        raise invalid("comment is missing: must be an object with a text", param="comment")
    if comment.get("type", "PLAIN_TEXT") not in ("PLAIN_TEXT", "TEXT_TYPE_UNSPECIFIED"):
        raise invalid("comment.type must be PLAIN_TEXT", param="comment.type")
    text = checked_text(comment.get("text"), "comment.text", limits)
    wanted = body.get("requestedAttributes")
    if not isinstance(wanted, dict) or not wanted:
        raise invalid("requestedAttributes must be an object with a name at least", param="requestedAttributes")
    thresholds: dict[str, float] = {}
    for name, options in wanted.items():
        param = f"requestedAttributes.{name[:64]}"
        if name not in attributes:
            known = ", ".join(attributes)
            shown = f"the unknown name {name}" if _NAME.fullmatch(name) else "an unknown name"  # a text is not quoted
            raise invalid(f"requestedAttributes has {shown}. Use {known}", param="requestedAttributes")
        if not isinstance(options, dict | None):
            raise invalid(f"{param} must be an object", param=param)
        thresholds[name] = _threshold(options or {}, param)
    languages, token = body.get("languages", []), body.get("clientToken")
    if not isinstance(languages, list) or not all(isinstance(one, str) and len(one) <= 35 for one in languages):
        raise invalid("languages must be a list of language codes", param="languages")
    if token is not None and not (isinstance(token, str) and len(token) <= 1024):
        raise invalid("clientToken must be a string of at most 1024 characters", param="clientToken")
    return AnalyzeRequest(text, thresholds, tuple(map(whole_text, languages[:16])), token and whole_text(token))


def _threshold(options: Mapping[str, Any], param: str) -> float:
    if options.get("scoreType", "PROBABILITY") not in ("PROBABILITY", "SCORE_TYPE_UNSPECIFIED"):
        raise invalid(f"{param}.scoreType must be PROBABILITY", param=f"{param}.scoreType")
    found = options.get("scoreThreshold", 0)
    if not isinstance(found, int | float) or isinstance(found, bool) or not 0 <= found <= 1:
        raise invalid(f"{param}.scoreThreshold must be a number from 0 to 1", param=f"{param}.scoreThreshold")
    return float(found)


def analyze_answer(
    request: AnalyzeRequest, scores: Scores, scorer: TextScorer, attributes: Mapping[str, str]
) -> dict[str, Any]:
    """The answer in Perspective's form, with the model's version. `scores`: (1, c). One span is the whole text."""
    of_category = dict(zip(scorer.categories, scores[0].tolist(), strict=True))
    found: dict[str, Any] = {}
    for name, least in request.thresholds.items():
        score = {"value": of_category[attributes[name]], "type": "PROBABILITY"}
        if score["value"] >= least:
            span = {"begin": 0, "end": len(request.text), "score": score}
            found[name] = {"spanScores": [span], "summaryScore": score}
    answer: dict[str, Any] = {"attributeScores": found, "languages": list(request.languages), "model": scorer.version}
    return answer if request.client_token is None else {**answer, "clientToken": request.client_token}
