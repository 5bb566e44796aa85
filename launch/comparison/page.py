"""The blind page of a comparison: one HTML file that works without a server or a network."""

import json
import secrets
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from data_prep.reports.style import COLOURS, PAGE
from launch.comparison.questions import Question, question_record

# Only the page's own script runs, and nothing is loaded: an answer of a model cannot become part of the page.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def comparison_page(questions: Sequence[Question], *, comparison_id: str) -> str:
    """The HTML of the page. It holds prompts and answers, and no name of a model."""
    assets = files("launch.comparison") / "assets"
    style, body, code = ((assets / name).read_text(encoding="utf-8") for name in ("page.css", "page.html", "page.js"))
    data = {"comparison": comparison_id, "questions": [question_record(question) for question in questions]}
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")  # so that no text can end the element
    nonce = secrets.token_urlsafe(12)
    policy = escape(f"{POLICY}; script-src 'nonce-{nonce}'")
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width"><title>Which answer is better?</title>',
            f"<style>{COLOURS}{PAGE}{style}</style></head><body>",
            body,
            f'<script type="application/json" id="data">{text}</script>',
            f'<script nonce="{nonce}">{code}</script></body></html>\n',
        ]
    )
