"""Write a recipe for a corpus with the reason of each choice."""

from pathlib import Path

from gpt.errors import one_line
from launch.config.settings import toml
from launch.start.corpus_choice import CorpusChoice
from launch.start.look import Survey


def corpus_recipe(survey: Survey, choice: CorpusChoice, *, folder: Path, title: str) -> str:
    """Return a recipe for `triaxial prepare` that makes the corpus in `folder`. `title`: its comment."""
    lines = [*(f"# {line}".rstrip() for line in title.splitlines()), "", *_input(survey, choice)]
    lines += [
        "",
        "[output]",
        f"folder = {toml(folder)}",
        f"validation_fraction = {choice.validation_fraction:g}  # of about {choice.documents:,} documents",
        "",
        "[tokenizer]",
        f"vocab_size = {choice.vocab_size}  # the training recipe has the same number",
        "",
        *(_web(choice) if choice.preset == "web" else _curated(choice)),
    ]
    return "\n".join(lines) + "\n"


def _input(survey: Survey, choice: CorpusChoice) -> list[str]:
    lines = ["[input]", f"paths = {toml(survey.paths)}"]
    if survey.text_field != "text" or len(survey.fields) > 1:
        others = [field for field in survey.fields if field != survey.text_field]
        comment = f"  # other texts: {one_line(', '.join(others[:6]))}" if others else ""
        lines.append(f"text_field = {toml(survey.text_field)}{comment}")
    if survey.id_field != "id":
        lines.append(f"id_field = {toml(survey.id_field)}  # from the texts: in the files, all documents have one id")
    if survey.encoding:
        lines.append(f"encoding = {toml(survey.encoding)}  # of the files that are not UTF-8: {len(survey.recoded):,}")
    if choice.separator:
        lines.append(f"text_separator = {toml(choice.separator)}  # between documents")
    if choice.split_bytes:
        lines.append(f"text_split_bytes = {choice.split_bytes}  # cut texts into documents at paragraphs")
    if survey.endings:
        table = ", ".join(f"{toml(ending)} = {toml(kind)}" for ending, kind in survey.endings.items())
        lines.append(f"endings = {{ {table} }}  # of this folder; remove what is no text for a model")
    return lines


def _curated(choice: CorpusChoice) -> list[str]:
    return [
        "# Keep everything but exact copies: the texts are chosen already. `triaxial init --preset web` filters.",
        "[language]",
        f"enabled = false  # {_shares(choice)}",
        "",
        "[quality]",
        "rules = []",
        "",
        "[dedup_minhash]",
        "enabled = false  # true also drops texts that share most of their words with another",
    ]


def _web(choice: CorpusChoice) -> list[str]:
    rules = ", ".join(f'"{rule}"' for rule in choice.rules)
    lines = [
        "[language]",
        f"keep = {toml(choice.keep)}  # {_shares(choice)}",
        "",
        "[quality]  # docs/guides/data/rules.md; `triaxial prepare RECIPE --dropped` shows what a rule drops",
        f"rules = [{rules}]",
    ]
    if len(choice.rules) < 4:
        lines.append("# Gopher's quality rules and C4's expect English words and are left out.")
    return [*lines, "", "[dedup_minhash]", "enabled = true  # texts that share most of their words count once"]


def _shares(choice: CorpusChoice) -> str:
    named = [f"{code or 'not detected'} {share:.0%}" for code, share in list(choice.languages.items())[:4]]
    return f"languages of a sample: {', '.join(named) or 'none'}"
