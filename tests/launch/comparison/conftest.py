"""What the tests of a comparison share: a page with hostile answers, and a browser that presses keys on it."""

import re
import shutil
import subprocess

import pytest

from launch.comparison.page import comparison_page
from launch.comparison.questions import answered_prompts, make_questions

HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror="document.title=1"> &amp; \u2028'


@pytest.fixture(scope="session")
def comparison():
    """Six prompts, one of messages, with the answers of two models; one pair of answers is equal."""
    prompts = ["What is 2 + 2?", HOSTILE, "Say hello.", "Name a city.", "Equal?"]
    prompts.append([{"role": "user", "content": "Hi <b>"}, {"role": "assistant", "content": "Yes?"},
                    {"role": "user", "content": "Bye"}])  # fmt: skip
    answers = {
        "runs/sft": ["4", "ok", HOSTILE, "Bern", "same", ""],
        "runs/ppo": ["four, of course", "no", "Hello!", "Paris and many more", "same ", "Bye!"],
    }
    return answered_prompts(prompts, answers, seed=3)


@pytest.fixture(scope="session")
def questions(comparison):
    return make_questions(comparison, seed=3)[0]


@pytest.fixture(scope="session")
def page(questions):
    return comparison_page(questions, comparison_id="c0ffee")


@pytest.fixture(scope="session")
def driven(page, tmp_path_factory):
    """driven(script, before): the page's HTML after `script` has pressed its keys in a browser. `before` runs first.

    The script has `press(key)` and `saved()`, the text of the last file of votes. Skips where there is no browser.
    """
    browser = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    helpers = """
        const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
        let blob = null;
        URL.createObjectURL = (made) => ((blob = made), "blob:null/0");
        HTMLAnchorElement.prototype.click = function () { document.body.dataset.file = this.download; };
        const saved = () => blob.text();
        const show = (id, textContent) =>
          document.body.append(Object.assign(document.createElement("pre"), { id, textContent }));
    """

    def drive(script, *, before=""):
        if browser is None:
            pytest.skip("no browser is installed (chromium, google-chrome)")
        nonce = re.search(r'<script nonce="([\w-]+)">', page)[1]
        folder = tmp_path_factory.mktemp("driven")
        first = f'<script nonce="{nonce}">{{ {before} }}</script><script nonce="{nonce}">'
        test = f'<script nonce="{nonce}">(async () => {{ {helpers} {script} }})();</script></body></html>'
        (folder / "page.html").write_text(
            page.replace(f'<script nonce="{nonce}">', first).replace("</body></html>", test), encoding="utf-8"
        )
        words = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--virtual-time-budget=20000",
        ]
        command = [
            browser,
            *words,
            f"--user-data-dir={folder / 'profile'}",
            "--dump-dom",
            (folder / "page.html").as_uri(),
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout

    return drive
