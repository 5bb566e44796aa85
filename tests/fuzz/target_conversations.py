"""Files of conversations for `triaxial prepare`, in every shape, and chat templates, which are strangers' programs."""

import json
import tempfile
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import Target
from mutations import change_value, mutate

from data_prep.conversations.chat_format import ChatEncoder, choose_format
from data_prep.conversations.check import check_conversations
from data_prep.conversations.config import ConversationsConfig
from data_prep.conversations.conversation import Kind, UnusableRecord
from data_prep.conversations.read import READ, read_task
from data_prep.conversations.render import RENDER, RenderTask
from data_prep.conversations.shapes import SHAPES
from data_prep.conversations.tokens import RANKINGS, STREAMS, TOKENS, RankingsTask, TokensTask
from data_prep.corpus.split import SplitConfig
from data_prep.documents.quarantine import quarantine_path, read_quarantine
from data_prep.inputs.config import InputConfig
from data_prep.inputs.find import find_inputs
from gpt.errors import ConfigError
from gpt.tokenizer.tokenizers import load_tokenizer, train_sentencepiece
from launch.comparison.prompts import read_conversations

ASKED, GOOD, BAD = "Which colour has the sky?", "It is blue.", "It is green ü."
TURNS = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": GOOD}]
RECORDS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [{"role": "system", "content": "Answer."}, *TURNS, *TURNS], "id": "a"},
    "hh": {"chosen": f"\n\nHuman: {ASKED}\n\nAssistant: {GOOD}", "rejected": f"\n\nHuman: {ASKED}\n\nAssistant: {BAD}"},
    "preference": {"prompt": ASKED, "chosen": GOOD, "rejected": BAD, "score_chosen": 4.5, "score_rejected": 1},
    "ranking": {
        "prompt": ASKED,
        "completions": [{"text": GOOD, "rank": 1}, {"text": BAD, "rank": 2}, {"text": "No.", "rank": 2}],
        "labeller": "Anna",
    },
    "prompt_completion": {"prompt": ASKED, "completion": GOOD},
    "self_instruct": {
        "instruction": ASKED,
        "instances": [{"input": "", "output": GOOD}, {"input": "x", "output": BAD}],
    },
    "alpaca": {"instruction": ASKED, "input": "now", "output": GOOD},
    "prompt": {"prompt": ASKED},
}
assert set(RECORDS) == set(SHAPES)
RANKED = ("hh", "preference", "ranking")
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SETTINGS = {"eos_token": {"content": "</s>"}, "bos_token": "<s>", "chat_template": TEMPLATE}


@cache
def tokenizer_file() -> Path:
    """A sentencepiece model that lives as long as this process."""
    path = Path(tempfile.mkdtemp(prefix="triaxial_fuzz_tokenizer_")) / "x.model"
    train_sentencepiece(iter([f"{ASKED} {GOOD} {BAD} System User Assistant: 0123456789"] * 3), path, vocab_size=300)
    return path


# ---- the stages of `triaxial prepare` --------------------------------------------------------------------------------


def write(folder: Path, *, ending: str) -> None:
    """A file of each shape, with four records; of Parquet, which a child process reads, only one."""
    tokenizer_file()
    shapes = RECORDS if ending == ".jsonl" else {"ranking": RECORDS["ranking"]}
    for shape, record in shapes.items():
        records = [{**record, "number": n} for n in range(4)]
        if ending == ".parquet":
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(records), folder / f"{shape}.parquet")
        else:
            (folder / f"{shape}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def damage_lines(folder: Path, rng: Random) -> list[str]:
    """Change values inside records, of which several may be wrong at once; sometimes other damage."""
    path = rng.choice(sorted(folder.iterdir()))
    for other in folder.iterdir():
        if other != path:
            other.unlink()  # one whole shape is read by seed 0
    if path.suffix != ".jsonl" or rng.random() < 0.15:
        return mutate(folder, rng)
    lines, changes = path.read_text().splitlines(), []
    for _ in range(rng.choice((1, 1, 2))):
        number = rng.randrange(len(lines))
        value, change = change_value(json.loads(lines[number]), rng)
        try:
            lines[number] = json.dumps(value)
        except (ValueError, RecursionError):
            lines[number] = "[" * 100_000
        changes.append(f"{path.name} line {number + 1}{change}")
    path.write_text("\n".join(lines) + "\n")
    return changes


def prepare(folder: Path) -> None:
    """As a run checks its inputs, and its stages read, render and tokenize one file after the other."""
    lost: list[str] = []
    for path in find_inputs([str(path) for path in folder.iterdir()]):
        kinds: tuple[Kind, ...] = ("rankings", "demonstrations", "prompts")
        for kind in kinds if path.stem in RANKED else kinds[2:] if path.stem == "prompt" else kinds[1:]:
            with tempfile.TemporaryDirectory(prefix="triaxial_fuzz_") as work:
                lost += prepare_one(path, ConversationsConfig(kind), Path(work))
    if lost:
        raise ConfigError(f"noticed: {', '.join(sorted(set(lost)))[:1000]}")  # as the table of a run says


def prepare_one(path: Path, config: ConversationsConfig, work: Path) -> list[str]:
    """The reasons of records that are lost, which a pair that became part of a ranking is not.

    RuntimeError: a document failed in our code, which the quarantine would hide.
    """
    reading, tokenizer = InputConfig(paths=("-",)), tokenizer_file()
    try:
        check_conversations([path], reading, config)
        chat = choose_format(config, tokenizer)
        read = READ.function(read_task(reading, config), (path,), (work / "read", work / "read.trace"))
        rendering = RenderTask(config.kind, chat, config.learn, None, None)
        rendered = RENDER.function(rendering, (work / "read", tokenizer), (work / "shard", work / "shard.trace"))
        names = ["ids", "rows", "lines", *STREAMS[config.kind]]
        written = TokensTask(SplitConfig(0.25, 0), config.kind, load_tokenizer(tokenizer).vocab_size)
        TOKENS.function(written, (work / "shard",), tuple(work / name for name in names))
        if config.kind == "rankings":
            RANKINGS.function(RankingsTask(False), (work / "rows", work / "lines"), (work / "side.jsonl",))
    finally:
        for output in (work / "read", work / "shard"):
            if quarantine_path(output).exists():
                failed = next(iter(read_quarantine(quarantine_path(output))))
                raise RuntimeError(f"quarantined: {failed}"[:3000])
    dropped = {reason for result in (read, rendered) for counts in result.counts for reason in counts.dropped}
    return sorted(dropped - {"joined_pair"})


def as_prompts(folder: Path) -> None:
    """As `triaxial compare --chat`, `best-of-n` and `score` read such files."""
    for path in sorted(folder.iterdir()):
        _, left_out = read_conversations(path)
        if left_out:
            raise ConfigError(f"left out: {left_out}"[:1000])


# ---- chat templates --------------------------------------------------------------------------------------------------


def write_template(folder: Path) -> None:
    """A tokenizer with a chat template next to it, in its settings and in a file."""
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.BPE({chr(n): n for n in range(32, 127)}, []))
    made.add_special_tokens(["<s>", "</s>", "<|user|>", "<|assistant|>"])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def damage_template(folder: Path, rng: Random) -> list[str]:
    """Damage the template or the settings, not the tokenizer, which has its own targets."""
    kept = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").unlink()
    if rng.random() < 0.5:
        (folder / "chat_template.jinja").unlink()  # then that of the settings is read
    changes = mutate(folder, rng)
    (folder / "tokenizer.json").write_bytes(kept)
    return changes


def use_template(folder: Path) -> None:
    """As `[conversations]` chooses a format and renders with it."""
    from data_prep.conversations.conversation import Turn

    turns = [Turn("user", ASKED), Turn("assistant", GOOD), Turn("user", "Why?"), Turn("assistant", BAD)]
    chat = choose_format(ConversationsConfig("demonstrations"), folder / "tokenizer.json")
    with ChatEncoder(chat, folder / "tokenizer.json") as encoder:
        encoder.encode(turns)
        encoder.prompt(turns[:3])
        assert encoder.end_ids


_NEEDS = ("zstandard", "xxhash", "isal")
TARGETS = (
    Target(
        "conversations_jsonl", partial(write, ending=".jsonl"), prepare, cases=40, needs=_NEEDS, damage=damage_lines
    ),
    Target(
        "conversations_parquet",
        partial(write, ending=".parquet"),
        prepare,
        cases=3,
        needs=("pyarrow", *_NEEDS),
        damage=damage_lines,
    ),
    Target(
        "conversations_asked", partial(write, ending=".jsonl"), as_prompts, cases=40, needs=_NEEDS, damage=damage_lines
    ),
    Target(
        "chat_template",
        write_template,
        use_template,
        allowed=(ConfigError, UnusableRecord),
        cases=10,
        needs=("tokenizers", "jinja2"),
        damage=damage_template,
    ),
)
