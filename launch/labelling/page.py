"""The page for labelling: one HTML file that talks to the server that it came from, and to nobody else."""

import json
import secrets
from html import escape
from importlib.resources import files

from data_prep.reports.style import COLOURS, PAGE
from gpt.moderation.taxonomy import Taxonomy
from launch.labelling.keys import keyed_categories, page_record

# Only the page's own script runs, and nothing is loaded from elsewhere: a text cannot become part of the page.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'"
)


def labelling_page(taxonomy: Taxonomy, *, labeller: str, blur: bool) -> str:
    """The page of one labeller. It holds the taxonomy, and no text to label and no label."""
    assets = files("launch.labelling") / "assets"
    style, body, code = ((assets / name).read_text(encoding="utf-8") for name in ("page.css", "page.html", "page.js"))
    data = {
        "labeller": labeller,
        "taxonomy": taxonomy.label,
        "blur": blur,
        "ids": list(taxonomy.ids),
        "categories": [page_record(keyed, taxonomy) for keyed in keyed_categories(taxonomy)],
        "parents": {category.id: category.parent for category in taxonomy.categories},
    }
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")  # so that no text can end the element
    nonce = secrets.token_urlsafe(12)
    policy = escape(f"{POLICY}; script-src 'nonce-{nonce}'")
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,"><title>Label texts</title>',
            f"<style>{COLOURS}{PAGE}{style}</style></head><body>",
            body,
            f'<script type="application/json" id="data">{text}</script>',
            f'<script nonce="{nonce}">{code}</script></body></html>\n',
        ]
    )
