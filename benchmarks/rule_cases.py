"""Generated texts at and around the thresholds of the quality rules, and what datatrove decides on each.

    PYTHONPATH=. python benchmarks/rule_cases.py --datatrove PYTHON

writes tests/data_prep/rule_decisions.json, which the tests hold our rules to where datatrove is not installed. Every
text here is made up; nothing is taken from a corpus.
"""

import argparse
import json
import random
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from web_corpus_rules import RULE_SETS, Rules, single_rules, text_digest, their_decisions

FIXTURE = Path(__file__).parents[1] / "tests" / "data_prep" / "rule_decisions.json"
Pieces = list[tuple[str, int]]  # a text as strings, each with how often it is repeated

_WORDS = re.findall(
    r"\w+",
    """the of and to that with have be harbour miller lantern orchard winter letter window market copper river garden
    village wheel basket candle bridge evening mountain kitchen shoulder thunder ribbon meadow whisper journey quarrel
    silver ladder chapter stranger morning blanket feather corner signal farmer castle pocket island shadow""",
)
_PLAIN = [word for word in _WORDS if len(word) > 4]


def cases() -> dict[str, str]:
    """Every text by its name."""
    return {name: "".join(part * times for part, times in pieces) for name, pieces in _cases()}


def _cases() -> Iterator[tuple[str, Pieces]]:
    yield from _odd_cases()
    yield from _gopher_cases()
    yield from _line_cases()
    yield from _c4_cases()
    yield from _exact_cases()
    for seed in range(14):
        yield f"small vocabulary {seed}", [(_babble(seed, 80 + 4 * seed, 4 + 3 * seed), 1)]
    for seed in range(6):
        yield f"mixed lines {seed}", [(_mixed_lines(seed), 1)]


def _prose(seed: int, n_sentences: int, *, between: str = " ", end: str = ".") -> str:
    """Sentences of seven to eleven different words."""
    rng = random.Random(f"prose {seed}")
    sentences = [" ".join(rng.sample(_WORDS, rng.randint(7, 11))) for _ in range(n_sentences)]
    return between.join(sentence[0].upper() + sentence[1:] + end for sentence in sentences)


def _babble(seed: int, n_words: int, n_different: int) -> str:
    """Words drawn from few, so that n-grams of some lengths repeat and of others do not."""
    rng = random.Random(f"babble {seed}")
    words = rng.sample(_WORDS, min(n_different, len(_WORDS)))
    marks = ["", "", "", "", "", ",", ".", "\n", " -"]
    return " ".join(rng.choice(words) + rng.choice(marks) for _ in range(n_words))


def _mixed_lines(seed: int) -> str:
    rng = random.Random(f"lines {seed}")
    kinds = [
        lambda n: _prose(100 * seed + n, 2),
        lambda n: _prose(100 * seed + n, 1, end=""),
        lambda n: "- " + rng.choice(_PLAIN),
        lambda n: rng.choice(_PLAIN) + " ...",
        lambda n: "",
        lambda n: "Please enable JavaScript on this page.",
        lambda n: 'He said, "That\'s all, Mr. Brown."[4]',
        lambda n: "    " + _prose(7, 1) + "  ",
    ]
    return "\n".join(rng.choice(kinds)(n) for n in range(20))


def _odd_cases() -> Iterator[tuple[str, Pieces]]:
    yield "empty", []
    yield "blank", [(" \n\t ", 3)]
    yield "one word", [("Word", 1)]
    yield "marks only", [("?! ... -- §§ • © ", 30)]
    yield (
        "line ends of all kinds",
        [("One line of words here.\r\nTwo lines.\x0bThree.\x0cFour.\x85Five.\u2028Six.\n", 6)],
    )
    yield "newlines around", [("\n\n", 2), (_prose(1, 12), 1), ("\n", 3)]
    yield "no-break spaces", [(_prose(2, 12).replace(" ", "\u00a0"), 1)]
    yield "Chinese", [("北京是中国的首都。人口众多，历史悠久！你去过吗？【图】", 12)]
    yield "Arabic", [("كانَ الوَلَدُ يَقرأُ كِتاباً. هل تعرفه؟ ", 20)]
    yield "Hindi", [("यह एक छोटी कहानी है। वह बाज़ार गया। ", 20)]
    yield "emoji", [(_prose(3, 10, end=" 😀🎉."), 1)]
    yield "broken characters", [(_prose(4, 10).replace("e", "\ufffd"), 1)]
    yield "contractions", [("I don't know, he'd said; they've gone, we can't. Isn't it John's? 'Tis cannot. ", 10)]
    yield (
        "addresses",
        [("See https://example.org/a/b?c=d or mail me@example.org, v2.0.1, U.S. at 3.14pm (e.g. here). ", 10)],
    )
    yield "a long run", [("=", 3000), (" ", 1), (_prose(5, 12), 1)]
    yield "brackets nested", [("((((", 40), (_prose(6, 12), 1), ("))))", 40)]


def _gopher_cases() -> Iterator[tuple[str, Pieces]]:
    for n in (49, 50, 51):
        yield f"{n} words", [(" ".join((_WORDS * 2)[:n]) + " ... !", 1)]
    for n in (99_990, 100_020):
        yield f"{n} words in all", [("the miller carried a wheel and that was it of old\n", n // 11), ("word ", n % 11)]
    for length in (2, 3, 10, 11):
        yield f"words of {length} letters", [(f"the and {'x' * length} {'y' * length} {'z' * length} of ", 12)]
    for n in (9, 10, 11, 14):
        yield f"{n} hashes", [(_prose(8, 9) + " ", 1), ("# ", n), ("#tag ", 2)]
        yield f"{n} ellipses", [(_prose(9, 9) + " ", 1), ("... ", n), ("well… ", 1)]
    for n in (17, 18, 19, 20):  # of 20, and 4 to 7 of 20
        bullets, rest = (
            [f"{'•' if i % 2 else ' -'} {_prose(i, 1)}\n" for i in range(n)],
            _prose(50, 20 - n, between="\n"),
        )
        yield f"{n} bullets of 20", [("".join(bullets) + rest, 1)]
        yield (
            f"{n - 13} ellipsis ends of 20",
            [(_prose(51, n - 13, between="\n", end="...") + "\n" + _prose(52, 33 - n, between="\n"), 1)],
        )
    yield "star bullets", [(_prose(53, 20, between="\n* "), 1)]
    for n in (16, 20, 24, 28):
        yield f"{n} numbers", [(_prose(10, 10) + " ", 1), ("12,5 2019 ", n // 2)]
    for stops in ("", "the ", "the of ", "The The "):
        yield f"stop words: {stops or 'none'}", [(stops + " ".join(_PLAIN * 2), 1)]


def _line_cases() -> Iterator[tuple[str, Pieces]]:
    for n in (2, 3, 4):
        lines = [_prose(20 + i, 1) for i in range(10 - n)] + ["Again."] * (n + 1)
        yield f"{n} lines repeated", [("\n".join(lines), 1)]
        yield f"{n} paragraphs repeated", [("\n\n".join(lines), 1)]
    for n in (1, 2, 3, 4):
        yield f"long line {n} times", [(_prose(30, 2) + "\n", n), (_prose(31, 12, between="\n"), 1)]
        yield f"long paragraph {n} times", [(_prose(32, 2) + "\n\n\n", n), (_prose(33, 12, between="\n\n"), 1)]
    for n in (1, 2, 3):
        ends = [_prose(40 + i, 1, end="." if i < n else "") for i in range(12)]
        yield f"{n} ends of 12", [("\n".join(ends), 1)]
        yield f"{n} ends of 17, others", [("\n".join([*ends, *"अ।", "Ende！", 'quote."', "blank. ", "Fin"]), 1)]
    for n in (6, 7, 8):
        short = [f"Short {_PLAIN[i]}." for i in range(n)] + ["x" * 29 + ".", "x" * 30 + "."]
        yield f"{n} short lines", [("\n".join([*short, *(_prose(60 + i, 1) for i in range(10 - n))]), 1)]
    for n in (8, 16, 24):
        yield f"{n} empty lines", [("\n".join(_prose(70 + i, 1) for i in range(8)), 1), ("\n", n), (_prose(79, 1), 1)]
    yield "lists", [(f"{word}.\n", 1) for word in _PLAIN[:30]]
    for length in (7, 8, 9, 20):
        yield f"line of {length} copied", [(_prose(80, 16, between="\n") + "\n", 1), ("a" * length + ".\n", 2)]


def _exact_cases() -> Iterator[tuple[str, Pieces]]:
    """Texts that meet a threshold exactly, which is not above it and not below it."""
    yield "a tenth hashes", [(" ".join((_WORDS * 2)[:90]) + " ", 1), ("# ", 10)]
    yield "a tenth ellipses", [(" ".join((_WORDS * 2)[:90]) + " ", 1), ("... ", 10)]
    yield "mean of 3 letters", [("the and ", 30)]
    yield "mean of 10 letters", [("x" * 10 + " ", 60)]
    yield "67 of 100 lines short", [("Short one.\n", 67), ("A line that has more than thirty characters.\n", 33)]
    yield "3 line ends in 10 words", [("one two three four five six seven eight nine ten\n\n\n", 6)]
    yield (
        "3 of 10 lines came before",
        [("Once more.\n", 3), ("Once more.", 1), *((f"\nLine {i}.", 1) for i in range(6))],
    )
    copied = [f"{i:02d}{'x' * 25}." for i in range(38)] + ["aaaaaaaaaa."] * 2
    yield "1% copied, counted without line ends", [("\n".join(copied), 1)]
    yield "a fifth copied, counted with line ends", [("abcdefgh." + "\n" * 9, 2), ("ijklmnopqrstuvwxyz", 1)]
    yield "top 2-gram is a fifth", [("ab cd", 2), (" ", 1), (" ".join(f"{i:02d}" for i in range(13)), 1), ("x", 1)]


def _c4_cases() -> Iterator[tuple[str, Pieces]]:
    good = _prose(90, 6, between="\n")
    for name, line in {
        "javascript": "Please turn on JavaScript to go on.",
        "bracket kept": "It is written as { here.",
        "bracket in a line that goes": "function f {",
        "bracket after javascript": "Use javascript { here.",
        "lorem kept": "Lorem Ipsum dolor sit amet.",
        "lorem in a line that goes": "lorem ipsum dolor",
        "policy": "We use cookies; see our Privacy Policy.",
        "policy with bracket": "Our terms of use { say so.",
        "two words": "Two words.",
        "three with a citation": "Only two [12].",
        "citations": "It was so[1], they say[citation needed], at last[edit] and more.[]",
        "citation before the end": "He had gone to the harbour.[3]",
        "long word": "A word of " + "x" * 1001 + " letters.",
        "word of 1000": "A word of " + "x" * 1000 + " letters.",
        "trails off": "And then it trails off...",
        "apostrophe": "They said that it was 'theirs'",
        "closing quotes": "They said that it was “theirs”",
        "question": "Is that the end of it?",
        "colon": "It ends in a colon here:",
    }.items():
        yield f"C4 {name}", [(good + "\n" + line + "\n" + good.upper(), 1)]
    for n in (3, 4, 5, 6):
        yield f"C4 {n} sentences in a line", [(_prose(91, n), 1)]
        yield f"C4 {n} sentences in lines", [(_prose(92, n, between="\n\n"), 1)]
    yield (
        "C4 abbreviations",
        [("Mr. Brown of the U.S. met Dr. Green, e.g. at 5 p.m. on Oct. 3. He left. J. R. said so.", 1)],
    )
    yield "C4 quotes", [('"Go now." "Why so?" she said. (He left!) "No." And so...', 1)]
    yield "C4 runs of marks", [("What?! No!!! Yes... and then. Really?? Well.Then it.is done.", 1)]


def write_fixture(python: Path) -> int:
    """Have datatrove decide, with our words, and store texts and decisions; how many texts there are."""
    rules: Rules = {**RULE_SETS, **single_rules()}
    texts = cases()
    with tempfile.TemporaryDirectory() as folder:
        decisions = their_decisions(python, list(texts.values()), rules, words="ours", folder=Path(folder))
    lines: list[Any] = [{"made by": "benchmarks/rule_cases.py with datatrove 0.10.1", "rules": list(rules.items())}]
    for (name, pieces), found in zip(_cases(), decisions, strict=True):
        whole, drops, changed = text_digest(texts[name]), dict[str, list[int]](), dict[str, list[int]]()
        for number, rule in enumerate(rules):  # numbers instead of names make the file half as large
            reason, digest = found[rule]
            if reason:
                drops.setdefault(reason, []).append(number)
            elif digest != whole:
                changed.setdefault(digest, []).append(number)
        lines.append({"name": name, "pieces": pieces, "drops": drops, "changed": changed})
    FIXTURE.write_text("[\n" + ",\n".join(json.dumps(line, separators=(",", ":")) for line in lines) + "\n]\n")
    return len(texts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datatrove", type=Path, required=True, metavar="PYTHON")
    print(f"{FIXTURE}: {write_fixture(parser.parse_args().datatrove)} texts")
