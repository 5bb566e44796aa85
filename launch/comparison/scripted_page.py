"""A page in one HTML file, with its own script and the data that the script reads."""

import json
import secrets
from html import escape
from importlib.resources import files
from typing import Any

from data_prep.reports.style import COLOURS, PAGE

# Only the page's own script runs, and nothing is loaded from elsewhere: a text cannot become part of the page.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def scripted_page(package: str, data: dict[str, Any], *, title: str, asks_server: bool = False) -> str:
    """The page made of `page.html`, `page.css` and `page.js` in the folder `assets` of a package.

    The script finds `data` as JSON in the element `data`. `asks_server`: it may talk to the server that it came from.
    """
    assets = files(package) / "assets"
    style, body, code = ((assets / name).read_text(encoding="utf-8") for name in ("page.css", "page.html", "page.js"))
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")  # so that no text can end the element
    nonce = secrets.token_urlsafe(12)
    connects = "; connect-src 'self'" if asks_server else ""
    policy = escape(f"{POLICY}{connects}; script-src 'nonce-{nonce}'")
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<link rel="icon" href="data:,"><title>{escape(title)}</title>',
            f"<style>{COLOURS}{PAGE}{style}</style></head><body>",
            body,
            f'<script type="application/json" id="data">{text}</script>',
            f'<script nonce="{nonce}">{code}</script></body></html>\n',
        ]
    )
