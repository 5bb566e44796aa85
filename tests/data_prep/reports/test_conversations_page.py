"""The page shows what the token files hold, with a stranger's text as text."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from conversation_cases import write_conversations

from data_prep.corpus.corpus import read_corpus
from data_prep.reports.conversation_examples import Seen, SplitFiles, TextRun, examples, pack, runs
from data_prep.reports.conversations_page import conversations_page
from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.sampling_rules import sampling_of
from gpt.token_files.files import TokenFile, TokenFileWriter
from gpt.tokenizer.tokenizers import load_tokenizer

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")

HOSTILE = "<script>alert(1)</script> </bdi></p><b class=on>fake</b> &amp; \u202eevil\x1b[31m \ue000 zero\u200bwidth"


class Page(HTMLParser):
    """The tags of a page, and the text of the parts with a class."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.parts: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in ("meta", "br"):
            self.open.append(f"{tag}.{dict(attrs).get('class') or ''}")

    def handle_endtag(self, tag):
        assert self.open[-1].partition(".")[0] == tag, f"{tag} closes {self.open[-1]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open:
            self.parts.append((self.open[-1], data))


def page_of(folder):
    return conversations_page(folder, read_corpus(folder))


def test_a_strangers_text_stays_text(tmp_path, make_tokenizer):
    records = [{"prompt": f"{n} {HOSTILE}", "completion": HOSTILE} for n in range(12)]
    folder = write_conversations(tmp_path, records, make_tokenizer(), kind="demonstrations")
    html = page_of(folder)
    page = Page(html)
    assert not page.tags & {"script", "img", "link", "iframe"}
    assert "http" not in html, "the page loads nothing"
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    for hidden in ("\u202e", "\x1b", "\u200b", "\ue000"):
        assert hidden not in html
        assert f"<u>U+{ord(hidden):04X}</u>" in html
    assert page.open == ["html."]


def test_what_is_learned_is_coloured(tmp_path, make_tokenizer):
    records = [{"prompt": f"Q {n}", "completion": f"A{n}" * (n + 1)} for n in range(12)]
    folder = write_conversations(tmp_path, records, make_tokenizer(), kind="demonstrations")
    html = page_of(folder)
    page = Page(html)
    coloured = [text for where, text in page.parts if where == "span.on"]
    assert {f"A{n}" * (n + 1) for n in range(12)} >= set(coloured[1:])
    ends = [text for where, text in page.parts if where == "b.on"]
    assert set(ends[1:]) == {"<|im_end|>"}
    assert len(ends) == len(coloured), "and one of each in the legend"
    assert "Packed samples" in html
    assert html.count("class=row") >= 1
    assert html == page_of(folder)


def test_rankings_are_sorted_with_ties(tmp_path, make_tokenizer):
    answers = [("worst", 0), ("best", 9), ("tie a", 4), ("tie b", 4)]
    outputs = [{"text": text, "score": score, "model": f"m-{text[:3]}"} for text, score in answers]
    records = [{"prompt": f"Q {n}", "completions": outputs, "labeller": "<ann>"} for n in range(12)]
    folder = write_conversations(tmp_path, records, make_tokenizer(), kind="rankings")
    html = page_of(folder)
    first = html.split("class=chat")[1]
    assert re.findall(r"<b>(\w+)</b>level (\d)", first) == [("1st", "2"), ("2nd", "1"), ("2nd", "1"), ("3rd", "0")]
    assert re.findall(r"<span class=on>([^<]+)</span>", first) == ["best", "tie a", "tie b", "worst"]
    assert first.count("tied") == 2
    assert "labelled by &lt;ann&gt;" in first
    assert "score 9<br>m-bes" in first
    assert first.count("Q ") == 1, "the prompt stands once"


def test_examples_are_read_from_the_files(tmp_path, make_tokenizer):
    records = [{"prompt": f"Q {n}", "completion": "A" * (n + 1)} for n in range(20)]
    path = make_tokenizer()
    folder = write_conversations(tmp_path, records, path, kind="demonstrations")
    files = SplitFiles(folder, "training", json.loads((folder / "corpus.json").read_text())["splits"]["training"])
    lengths = files.lengths()
    assert lengths.sum() == files.tokens.n_tokens
    seen = examples(files, lengths, 3)
    assert [document.about for document in seen[-2:]] == ["the shortest", "the longest"]
    assert len(seen[-1].ids) == lengths.max()
    tokenizer = load_tokenizer(path)
    found = list(runs(seen[0].ids.tolist(), seen[0].learned.tolist(), tokenizer, tokenizer.special_names))
    assert sum(run.n_tokens for run in found) == len(seen[0].ids)
    assert [run for run in found if run.learned][-1] == TextRun("<|im_end|>", learned=True, special=True, n_tokens=1)


def test_completions_are_cut_at_their_marks():
    zeros = np.zeros(6, dtype=np.int64)
    marks = np.array([0, 2, 0, 0, 0, 1])
    document = Seen(0, "", zeros, zeros, marks, {})
    assert document.sequences() == [(slice(0, 2), 1), (slice(2, 6), 0)]


def test_rows_are_those_of_packed_sampling(tmp_path):
    assert pack([5, 4, 3, 30, 1, 8], seq_len=8) == [[0], [1, 2], [3], [4], [5]]
    lengths = np.random.default_rng(4).integers(1, 90, size=500)
    with TokenFileWriter(tmp_path / "t", vocab_size=9) as writer:
        for n in lengths:
            writer.add_document(np.zeros(n, dtype=np.int64))
    config = DataConfig(tokenizer="t", train=(CorpusConfig(str(tmp_path / "t")),), seq_len=64, sampling="packed")
    file = TokenFile(tmp_path / "t")
    rule = sampling_of(config, config.train[0]).of(file)
    rows = pack(lengths.tolist(), seq_len=64)
    assert rule.count(file) == len(rows) < 500
    starts = [0, *lengths.cumsum().tolist()]
    for sample, numbers in enumerate(rows):
        assert rule.span(file, sample)[0] == starts[numbers[0]]
