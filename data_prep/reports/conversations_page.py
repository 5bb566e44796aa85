"""Write the page that shows conversations as a model will see them: special tokens, learned tokens, rows, rankings."""

import re
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from data_prep.reports.conversation_examples import Ints, Seen, SplitFiles, examples, pack, runs
from data_prep.reports.style import html_page
from gpt.tokenizer.marked_text import special_names
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer

PAGE_FILE = "conversations.html"
_SHOWN = {"training": 8, "validation": 3}  # documents of each split, besides the longest and the shortest
_MAX_TOKENS = 700  # of a conversation that are shown
_ROWS = 12
# Characters that would change the order of the page's text, or cannot be seen.
_HIDDEN = re.compile(
    "([\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028\u2029\u202a-\u202e\u2060-\u206f\ue000-\uf8ff\ufeff])"
)

_STYLE = """
body { max-width: 62rem }
.chat { background: var(--card); border: 1px solid var(--line); border-radius: 6px; margin: .7rem 0 1.1rem;
  padding: .1rem .8rem .6rem }
.chat p.head { color: var(--soft); font-size: .82rem; margin: .5rem 0 .35rem; overflow-wrap: anywhere }
.chat p.head b { color: var(--ink) }
.seen { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.6 ui-monospace, monospace; margin: 0 0 .3rem }
.seen .on { background: color-mix(in srgb, var(--s2) 24%, transparent); border-radius: 2px; padding: 1px 0;
  -webkit-box-decoration-break: clone; box-decoration-break: clone }
.seen b { font-weight: 600; font-size: .92em; color: var(--s0); border: 1px solid currentColor; border-radius: 4px;
  padding: 0 .2em; margin: 0 1px }
.seen b.on { color: var(--s2) } .seen i { font-style: normal; color: var(--soft); opacity: .75 }
.seen u { text-decoration: none; color: var(--fault); border: 1px dotted; border-radius: 3px; font-size: .85em }
.answer { display: grid; grid-template-columns: 8.5rem minmax(0, 1fr); gap: .2rem .8rem;
  border-top: 1px solid var(--line); padding: .55rem 0 }
.answer .level { color: var(--soft); font-size: .82rem; overflow-wrap: anywhere }
.answer .level b { display: block; color: var(--ink); font-size: 1rem }
.row { display: grid; grid-template-columns: 1fr 3rem; gap: .6rem; align-items: center; margin: .28rem 0;
  font-size: .78rem; color: var(--soft); font-variant-numeric: tabular-nums }
.row div { display: flex; height: 1.15rem; border: 1px solid var(--line); border-radius: 3px; overflow: hidden;
  background: repeating-linear-gradient(45deg, var(--line) 0 1px, transparent 1px 6px) }
.row s { display: flex; border-right: 2px solid var(--paper); text-decoration: none; min-width: 2px }
.row s i { background: color-mix(in srgb, var(--checkpoint) 45%, var(--paper)) } .row s i.on { background: var(--s2) }
.key i.ctx { background: color-mix(in srgb, var(--checkpoint) 45%, var(--paper)) } .key i.on { background: var(--s2) }
.key i.pad { background: repeating-linear-gradient(45deg, var(--soft) 0 1px, transparent 1px 4px);
  border: 1px solid var(--line) }
@media (max-width: 40rem) { .answer { grid-template-columns: minmax(0, 1fr) } .chat { padding: .1rem .55rem .5rem }
  .answer .level b { display: inline; margin-right: .6rem } }
"""


def conversations_page(folder: Path, description: dict[str, Any]) -> str:
    """Return the page's HTML of a corpus folder. The same corpus gives the same page."""
    chat = description["chat"]
    tokenizer = load_tokenizer(folder / description["tokenizer"]["file"])
    names = special_names(tokenizer)
    files = {split: SplitFiles(folder, split, about) for split, about in description["splits"].items()}
    lengths = {split: one.lengths() for split, one in files.items()}
    ends = ", ".join(names.get(i, str(i)) for i in chat["end_ids"])
    title = f"{folder.name}: what the model sees"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class=note>{escape(chat['kind'])} &middot; {description['documents']:,} documents, "
        f"{description['tokens']:,} tokens &middot; format {escape(chat['format'])}, answers end with "
        f"<code>{escape(ends)}</code> &middot; read back from the token files</p>",
        _legend(chat["kind"]),
        _rows(files["training"], lengths["training"]) if chat["kind"] == "demonstrations" else "",
    ]
    for split, one in files.items():
        parts.append(f"<h2>{escape(split.capitalize())}: {one.n_documents:,} documents</h2>")
        note = "The first documents, which are a random sample, then the shortest and the longest."
        parts.append(f"<p class=note>{note}</p>")
        show = _ranking if chat["kind"] == "rankings" else _document
        seen = examples(one, lengths[split], _SHOWN[split])
        parts += [show(document, tokenizer, names) for document in seen]
    return html_page(title, "\n".join(part for part in parts if part), style=_STYLE)


def _legend(kind: str) -> str:
    learned = "" if kind == "prompts" else "<span class=on>learned</span> "
    end = "" if kind == "prompts" else "<b class=on>learned special token</b> "
    return f"<p class=seen>text {learned}<b>special token</b> {end}<i>&crarr;</i> line end</p>"


def _document(document: Seen, tokenizer: Tokenizer, names: dict[int, str]) -> str:
    n, n_learned = len(document.ids), int(document.learned.sum())
    about = [f"<b>document {document.number:,}</b>", document.about, f"{n:,} tokens"]
    if n_learned:
        about.append(f"{n_learned:,} learned")
    text = _seen(document.ids, document.learned, tokenizer, names)
    return f"<div class=chat><p class=head>{' &middot; '.join(filter(None, about))}</p>{text}</div>"


def _ranking(document: Seen, tokenizer: Tokenizer, names: dict[int, str]) -> str:
    """Show the prompt once, and the completions from the best to the worst."""
    sequences = document.sequences()
    line, n_levels = document.line, 1 + max(level for _, level in sequences)
    about = [f"<b>document {document.number:,}</b>", document.about, f"{len(document.ids):,} tokens"]
    about += [f"{len(sequences)} completions", f"{n_levels} levels"]
    if line.get("labeller"):
        about.append(f"labelled by {_visible(line['labeller'])}")
    first = sequences[0][0]
    n_prompt = int(document.learned[first].argmax())
    answers = []
    for number, (part, level) in sorted(enumerate(sequences), key=lambda item: (-item[1][1], item[0])):
        rank = n_levels - level
        tied = sum(other == level for _, other in sequences) > 1
        score, model = (line[key][number] for key in ("scores", "models"))
        more = [f"level {level}", "tied" if tied else "", "" if score is None else f"score {score:g}", _visible(model)]
        answer = slice(part.start + n_prompt, part.stop)
        text = _seen(document.ids[answer], document.learned[answer], tokenizer, names)
        head = f"<b>{_ordinal(rank)}</b>{'<br>'.join(filter(None, more))}"
        answers.append(f"<div class=answer><div class=level>{head}</div>{text}</div>")
    shared = slice(first.start, first.start + n_prompt)
    prompt = _seen(document.ids[shared], document.learned[shared], tokenizer, names)
    head = " &middot; ".join(filter(None, about))
    return f"<div class=chat><p class=head>{head}</p>{prompt}{''.join(answers)}</div>"


def _seen(ids: Ints, learned: Ints, tokenizer: Tokenizer, names: dict[int, str]) -> str:
    """Show tokens: text with visible line ends, special tokens by name, learned ones coloured."""
    parts = []
    for run in runs(ids[:_MAX_TOKENS].tolist(), learned[:_MAX_TOKENS].tolist(), tokenizer, names):
        colour = " class=on" if run.learned else ""
        if run.special:
            parts.append(f"<b{colour}>{escape(run.text)}</b>")
        else:
            parts.append(f"<span{colour}>{_visible(run.text)}</span>" if run.learned else _visible(run.text))
    if len(ids) > _MAX_TOKENS:
        parts.append(f" <i>&hellip; {len(ids) - _MAX_TOKENS:,} more tokens</i>")
    return f"<p class=seen><bdi>{''.join(parts)}</bdi></p>"


def _visible(text: str) -> str:
    """Escape a stranger's text for HTML; show line ends, and characters that hide or reorder text by their numbers."""
    parts = []
    for part in _HIDDEN.split(text):
        is_hidden = bool(_HIDDEN.fullmatch(part))
        parts.append(f"<u>U+{ord(part):04X}</u>" if is_hidden else escape(part).replace("\n", "<i>&crarr;</i>\n"))
    return "".join(parts)


def _ordinal(rank: int) -> str:
    endings = {1: "st", 2: "nd", 3: "rd"}
    return f"{rank}{'th' if rank // 10 % 10 == 1 else endings.get(rank % 10, 'th')}"


def _rows(files: SplitFiles, lengths: Ints) -> str:
    """Show the first samples of data.sampling = "packed"."""
    seq_len = 1 << max(8, min(12, int(lengths.max() - 1).bit_length()))
    packed = pack(lengths.tolist(), seq_len)
    used = sum(min(int(n), seq_len + 1) for n in lengths)
    n_cut = int((lengths > seq_len + 1).sum())
    lines = [_row([files.read(i, "") for i in numbers], seq_len) for numbers in packed[:_ROWS]]
    cut = f" {n_cut:,} longer ones are cut." if n_cut else ""
    note = (
        f'With data.sampling = "packed" and data.seq_len = {seq_len:,}, {len(lengths):,} conversations fill '
        f"{len(packed):,} samples to {used / (len(packed) * (seq_len + 1)):.0%}.{cut} Attention stays inside each."
    )
    key = "".join(
        f"<span class=key><i class={kind}></i>{name}</span>"
        for kind, name in (("ctx", "context"), ("on", "learned"), ("pad", "padding"))
    )
    return f"<h2>Packed samples</h2><p class=note>{escape(note)} {key}</p>{''.join(lines)}"


def _row(documents: Sequence[Seen], seq_len: int) -> str:
    parts, total = [], 0
    for document in documents:
        learned = document.learned[: seq_len + 1]
        total += len(learned)
        bars = "".join(
            f'<i class={"on" if value else "off"} style="flex:{len(list(equal))}"></i>'
            for value, equal in groupby(learned.tolist())
        )
        width = 100 * len(learned) / (seq_len + 1)
        what = f"document {document.number}: {len(learned):,} tokens, {int(learned.sum()):,} learned"
        parts.append(f'<s style="width:{width:.3f}%" title="{what}">{bars}</s>')
    return f"<div class=row><div>{''.join(parts)}</div><span>{total / (seq_len + 1):.0%}</span></div>"
