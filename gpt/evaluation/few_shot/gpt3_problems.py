"""Generate the arithmetic and word-scrambling problems of the GPT-3 paper.

arXiv 2005.14165, sections 3.9.1 and 3.9.2. Prompts follow its appendix G and the files of openai/gpt-3.
A set of problems is a pure function of task, seed and size, and of the word list for word problems.
"""

import hashlib
import importlib
import operator
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gpt.errors import ConfigError, file_error
from gpt.files.regular import read_text

ARITHMETIC_PROBLEMS = 2_000  # per task, as in the paper
MAX_WORDS = 10_000
MAX_EXAMPLES = 200  # problems per task that are kept for examples
_LETTERS = range(5, 15)  # of a word: more than 4 and less than 15
_FILLERS = " .!/"  # inserted between letters in the published files

_OPERATIONS = {"plus": operator.add, "minus": operator.sub, "times": operator.mul}
_SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@dataclass(frozen=True)
class Problem:
    """A question and its answer, without the space between them."""

    question: str
    answer: str


@dataclass(frozen=True)
class TaskRule:
    """One task. `label` is the paper's abbreviation; `make` draws a problem, or None if a word allows none."""

    name: str
    label: str
    about_words: bool
    make: Callable[[random.Random, str], Problem | None]

    @property
    def instruction(self) -> str:
        """The text before all examples."""
        return "Please unscramble the letters into a word, and write that word:\n" if self.about_words else ""

    @property
    def paper_shots(self) -> int:
        """The number of examples in the paper's few-shot scores (its table H.1), for a context of 2,048 tokens."""
        return 100 if self.about_words else 50

    @property
    def delimiter(self) -> str:
        """The text between examples."""
        return "\n" if self.about_words else "\n\n"


@dataclass(frozen=True)
class ProblemSet:
    """Problems to score, and other problems to show as examples."""

    scored: tuple[Problem, ...]
    examples: tuple[Problem, ...]


@dataclass(frozen=True)
class WordList:
    """Words, most frequent first, and their source."""

    words: tuple[str, ...]
    source: str

    @property
    def sha256(self) -> str:
        """The digest of the list, for reports: scores on different lists are not comparable."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()


def task_rules() -> list[TaskRule]:
    """Return the ten arithmetic tasks and the five word tasks, in the paper's order, with the published files'
    names."""
    sizes = {2: "two", 3: "three", 4: "four", 5: "five"}
    kinds = [(2, "plus"), (2, "minus"), (3, "plus"), (3, "minus"), (4, "plus"), (4, "minus"), (5, "plus"), (5, "minus")]
    names = {"plus": ("addition", "+"), "minus": ("subtraction", "-"), "times": ("multiplication", "x")}
    arithmetic = [
        TaskRule(
            f"gpt3_{sizes[digits]}_digit_{names[word][0]}",
            f"{digits}D{names[word][1]}",
            False,
            partial(_sum, digits, word),
        )
        for digits, word in [*kinds, (2, "times")]
    ]
    words = [
        TaskRule(f"gpt3_{name}", label, True, partial(_unscramble, scramble))
        for name, label, scramble in (
            ("cycle_letters_in_word", "CL", cycle_letters),
            ("mid_word_1_anagrams", "A1", partial(shuffle_middle, kept=1)),
            ("mid_word_2_anagrams", "A2", partial(shuffle_middle, kept=2)),
            ("random_insertion_in_word", "RI", insert_fillers),
            ("reversed_words", "RW", reverse),
        )
    ]
    return [*arithmetic, TaskRule("gpt3_single_digit_three_ops", "1DC", False, _composite), *words]


def make_problems(rule: TaskRule, *, seed: int, words: WordList) -> ProblemSet:
    """Draw distinct problems in random order. At most one in ten, and at most 200, are kept for examples.

    ConfigError: the word list gives too few problems.
    """
    rng = random.Random(f"{seed}/{rule.name}")
    if rule.about_words:
        shuffled = list(words.words)
        rng.shuffle(shuffled)
        drawn = (rule.make(rng, word) for word in shuffled)
        problems = [problem for problem in drawn if problem is not None]
        n_examples = min(MAX_EXAMPLES, len(problems) // 10)
    else:
        n_examples = MAX_EXAMPLES
        problems = _distinct(rule, rng, ARITHMETIC_PROBLEMS + n_examples)
    if not n_examples:
        raise ConfigError(
            f"{words.source}: {rule.name} finds {len(problems)} words of 5 to 14 letters that it can scramble, but it "
            "needs at least 10. Give a longer text."
        )
    return ProblemSet(scored=tuple(problems[n_examples:]), examples=tuple(problems[:n_examples]))


def frequent_words(text: str, *, source: str, max_words: int = MAX_WORDS) -> WordList:
    """Return the most frequent lower-case words of 5 to 14 letters a to z in a text. Equal counts keep their order."""
    found = Counter(word for word in re.findall(r"[^\W\d_]+", text) if len(word) in _LETTERS and _is_plain(word))
    return WordList(tuple(word for word, _ in found.most_common(max_words)), source)


def words_of_python() -> WordList:
    """Return the words of the help topics that come with every Python. This list needs no file and no recipe."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        raise ConfigError(
            "this Python has no pydoc_data, the default word list. Give a text with --words FILE."
        ) from None
    return frequent_words("\n".join(topics[name] for name in sorted(topics)), source="pydoc_data.topics")


def words_of_file(path: Path) -> WordList:
    """Return the most frequent words of a text file. A list of words, one per line, keeps its order."""
    try:
        text = read_text(path)
    except OSError as error:
        raise file_error(error, f"--words {path} cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--words {path} cannot be read: {error}") from None
    return frequent_words(text, source=str(path))


def cycle_letters(rng: random.Random, word: str) -> str:
    """Rotate the letters by a random number of positions."""
    start = rng.randrange(1, len(word))
    return word[start:] + word[:start]


def shuffle_middle(rng: random.Random, word: str, *, kept: int) -> str:
    """Shuffle all letters except the first and the last `kept`."""
    middle = list(word[kept:-kept])
    rng.shuffle(middle)
    return word[:kept] + "".join(middle) + word[-kept:]


def insert_fillers(rng: random.Random, word: str) -> str:
    """Insert a space or punctuation mark between all letters."""
    return word[0] + "".join(rng.choice(_FILLERS) + letter for letter in word[1:])


def reverse(rng: random.Random, word: str) -> str:
    """Reverse the letters."""
    return word[::-1]


def _sum(digits: int, word: str, rng: random.Random, _: str) -> Problem:
    """Operands uniform on [0, 10^digits)."""
    a, b = rng.randrange(10**digits), rng.randrange(10**digits)
    return Problem(f"Q: What is {a} {word} {b}?\nA:", str(_OPERATIONS[word](a, b)))


def _composite(rng: random.Random, _: str) -> Problem:
    """Draw two operations on three digits.

    The paper's text puts the parentheses around the last two digits. Its appendix G and the published problems, which
    gave its scores, put them around the first two and use digits from 1 on. We follow the problems.
    """
    a, b, c = (rng.randrange(1, 10) for _ in range(3))
    inner, outer = rng.choice(list(_SIGNS)), rng.choice(list(_SIGNS))
    return Problem(f"Q: What is ({a} {inner} {b}) {outer} {c}?\nA:", str(_SIGNS[outer](_SIGNS[inner](a, b), c)))


def _unscramble(scramble: Callable[[random.Random, str], str], rng: random.Random, word: str) -> Problem | None:
    """Scramble a word. Returns None if ten tries do not change it."""
    for _ in range(10):
        scrambled = scramble(rng, word)
        if scrambled != word:
            return Problem(f"{scrambled} =", word)
    return None


def _distinct(rule: TaskRule, rng: random.Random, n: int) -> list[Problem]:
    def draw() -> Iterator[Problem]:
        seen: set[str] = set()
        while True:
            problem = rule.make(rng, "")
            assert problem is not None
            if problem.question not in seen:
                seen.add(problem.question)
                yield problem

    return [problem for problem, _ in zip(draw(), range(n), strict=False)]


def _is_plain(word: str) -> bool:
    return all(letter in string.ascii_lowercase for letter in word)
