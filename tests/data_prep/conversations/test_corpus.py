"""A recipe with conversations gives token files with streams, and counts everything that it leaves out.

It runs the stages of data_prep.conversations.read, data_prep.conversations.render and data_prep.conversations.tokens.
"""

import gzip
import io
import json
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from conversation_cases import CHATML
from in_process import InThisProcess
from rich.console import Console

from data_prep.conversations.config import ConversationsConfig
from data_prep.conversations.corpus import sum_of_facts
from data_prep.corpus.tokenize import TokenizerConfig
from data_prep.corpus.verify import verify
from data_prep.decontamination.decontaminate import DecontaminateConfig
from data_prep.decontamination.evaluation_sets import EvaluationSet
from data_prep.dedup.fuzzy import FuzzyConfig
from data_prep.execution.progress import ProgressBars
from data_prep.inputs.config import InputConfig
from data_prep.pipeline import prepare
from data_prep.plan import plan
from data_prep.recipe import OutputConfig, PrepareConfig
from data_prep.reports.dropped import dropped_documents
from data_prep.reports.explain import explain
from gpt.errors import ConfigError
from gpt.token_files.corpus import check_corpus
from gpt.token_files.files import TokenFile
from gpt.tokenizer.tokenizers import load_tokenizer

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")

DATA = Path("/work/shared/data/other/instruct")


def config(folder, paths, tokenizer, **conversations):
    return PrepareConfig(
        InputConfig(tuple(map(str, paths))),
        OutputConfig(folder / "corpus", folder / "work", validation_fraction=0.3, seed=1),
        TokenizerConfig(tokenizer),
        dedup_minhash=FuzzyConfig(enabled=False),
        conversations=ConversationsConfig(**conversations),
    )


def run(recipe):
    screen = io.StringIO()
    progress = ProgressBars(Console(file=screen, width=300))
    return prepare(recipe, n_workers=1, progress=progress, executor=InThisProcess), screen.getvalue()


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def open_split(folder, split):
    corpus = json.loads((folder / "corpus.json").read_text())
    streams = corpus["splits"]["training" if split == "train" else split].get("streams", {})
    files = {name: TokenFile(folder / about["prefix"]) for name, about in streams.items()}
    for about in streams.values():
        check_corpus(folder / about["prefix"])
    return TokenFile(folder / split), files, corpus


def documents(tokens, streams):
    starts = [*map(tokens.document_start, range(tokens.n_documents)), tokens.n_tokens]
    for bounds in pairwise(starts):
        yield tokens.read(*bounds), {name: file.read(*bounds) for name, file in streams.items()}


def dropped(prepared):
    return {(row.step, reason): n for row in prepared.counts for reason, n in row.dropped.items()}


def test_demonstrations(tmp_path, make_tokenizer):
    path = make_tokenizer(template=CHATML)
    records = [
        {"messages": [{"role": "user", "content": f"Q {n}"}, {"role": "assistant", "content": f"A {n}"}], "topic": "x"}
        for n in range(60)
    ]
    records += [records[7], {"messages": [*records[3]["messages"], {"role": "user", "content": "and?"}]}]
    records += [{"messages": [*records[3]["messages"], *records[4]["messages"]]}, {"prompt": "P", "completion": "C"}]
    records += [
        {"text": "web"},
        {"messages": [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "x"}]},
    ]
    source = write(tmp_path / "a.jsonl", records)
    recipe = config(tmp_path, [source], path, kind="demonstrations")
    prepared, screen = run(recipe)
    assert dropped(prepared) == {
        ("read", "other_shape"): 1,
        ("read", "unknown_shape"): 1,
        ("conversations", "no_answer"): 1,
        ("dedup_exact", "duplicate"): 1,
        ("render", "special_token_in_text"): 1,
    }
    assert "read 64 records of 1 files by the shape 'messages'" in screen
    assert "fields that are not used: topic (61)" in screen
    assert f"the tokenizer's chat template, {path.parent / 'chat_template.jinja'}" in screen
    folder, tokenizer = recipe.output.corpus_folder, load_tokenizer(path)
    found = {}
    for split in ("train", "validation"):
        tokens, streams, corpus = open_split(folder, split)
        assert set(streams) == {"learned"}
        assert streams["learned"].n_documents == tokens.n_documents > 5
        for ids, values in documents(tokens, streams):
            assert ids[-1] == corpus["chat"]["end_ids"][0]
            text = tokenizer.decode(ids[values["learned"] == 1].tolist())
            found[tokenizer.decode(ids.tolist())] = (text, split)
    assert found["user\nQ 5\nassistant\nA 5"][0] == "A 5"
    long_one = found["user\nQ 3\nassistant\nA 3\nuser\nQ 4\nassistant\nA 4"]
    assert long_one == ("A 3A 4", found["user\nQ 3\nassistant\nA 3"][1]), "in the split of its first prompt"
    assert len(found) == 61
    assert corpus["chat"]["format"] == "template"
    assert corpus["chat"]["template"] == CHATML
    assert (folder / "chat_template.jinja").read_text() == CHATML
    assert not verify(folder, n_threads=1).faults
    examples = dropped_documents(recipe.output.work_folder, "render").examples
    assert [(one.drop.reason, one.drop.detail) for one in examples] == [
        ("special_token_in_text", "<|im_end|> in a turn of user")
    ]
    (fate,) = explain(recipe.output.work_folder, examples[0].drop.id)
    assert fate.steps == ("conversations", "dedup_exact")
    done = plan(recipe)
    assert done.is_complete
    assert not any(stage.n_to_do for stage in done.stages)
    damaged = folder / "train_learned.bin"
    damaged.write_bytes(bytes([1 ^ damaged.read_bytes()[0]]) + damaged.read_bytes()[1:])
    assert any("train_learned.bin: sha256" in fault for fault in verify(folder, n_threads=1).faults)


def test_the_files_do_not_depend_on_the_inputs_order_or_workers(tmp_path, make_tokenizer):
    path = make_tokenizer()
    pairs = [{"prompt": f"Q {n}", "chosen": "good", "rejected": "bad", "labeller": f"l{n % 3}"} for n in range(40)]
    one = write(tmp_path / "one.jsonl", pairs)
    halves = [write(tmp_path / "b.jsonl", pairs[25:][::-1]), tmp_path / "c.jsonl.gz"]
    halves[1].write_bytes(gzip.compress("".join(json.dumps(pair) + "\n" for pair in pairs[:25]).encode()))
    for name, paths in (("x", [one]), ("y", halves)):
        run(config(tmp_path / name, paths, path, kind="rankings"))
    for file in ("train.bin", "train.idx", "train_learned.bin", "train_marks.bin", "validation_rankings.jsonl"):
        assert (tmp_path / "x/corpus" / file).read_bytes() == (tmp_path / "y/corpus" / file).read_bytes(), file


def test_rankings(tmp_path, make_tokenizer):
    path = make_tokenizer()
    records = []
    for n in range(40):
        answers = [("best", 3.5), ("middle", 1.0), ("also middle", 1.0), ("worst" + " long" * (9 * (n == 5)), -2.0)]
        outputs = [{"output": text, "log_odds": score, "model": text[0]} for text, score in answers]
        records.append({"instruction": f"Q {n}", "outputs": outputs, "labeler": f"l{n % 3}"})
    records += [
        {"instruction": "one", "outputs": [{"output": "a", "log_odds": 1}]},
        {"instruction": "tied", "outputs": [{"output": "a", "log_odds": 1}, {"output": "b", "log_odds": 1}]},
        {"instruction": "same", "outputs": [{"output": "a", "log_odds": 1}, {"output": "a", "log_odds": 0}]},
        {"instruction": "long " * 40, "outputs": records[0]["outputs"]},
        {"instruction": "many", "outputs": [{"output": f"a b {i}", "log_odds": i} for i in range(9)]},
    ]
    recipe = config(
        tmp_path,
        [write(tmp_path / "r.jsonl", records)],
        path,
        kind="rankings",
        max_tokens=40,
        max_prompt_tokens=30,
        max_document_tokens=200,
    )
    prepared, _screen = run(recipe)
    assert dropped(prepared) == {
        ("conversations", "one_completion"): 2,
        ("conversations", "all_tied"): 1,
        ("fitting completions", "too_long"): 1,
        ("render", "prompt_too_long"): 1,
        ("render", "ranking_too_long"): 1,
    }
    sums = sum_of_facts(prepared.facts["render"])
    assert (sums["answers"], sums["pairs"]) == (159, 39 * 5 + 2)
    folder, tokenizer = recipe.output.corpus_folder, load_tokenizer(path)
    seen = 0
    for split in ("train", "validation"):
        tokens, streams, corpus = open_split(folder, split)
        lines = [json.loads(line) for line in (folder / f"{split}_rankings.jsonl").read_text().splitlines()]
        assert len(lines) == tokens.n_documents
        for (ids, values), line in zip(documents(tokens, streams), lines, strict=True):
            ends = np.flatnonzero(values["marks"])
            assert ends[-1] == len(ids) - 1
            assert [int(mark) - 1 for mark in values["marks"][ends]] == line["levels"]
            assert set(ids[ends].tolist()) == set(corpus["chat"]["end_ids"])
            prompts, answers = set(), []
            for start, end in zip([0, *(ends[:-1] + 1)], ends + 1, strict=True):
                learned = np.flatnonzero(values["learned"][start:end]) + start
                assert learned.tolist() == list(range(learned[0], end)), "the answer and its end token"
                prompts.add(tokenizer.decode(ids[start : learned[0]].tolist()))
                answers.append(tokenizer.decode(ids[learned].tolist()))
            assert len(prompts) == 1
            assert [answer[0] for answer in answers] == line["models"], "the first letters name the test's models"
            assert line["labeller"] in ("l0", "l1", "l2")
            seen += len(ends)
    assert seen == 159


def test_prompts(tmp_path, make_tokenizer):
    path = make_tokenizer(special=("<|endoftext|>",))
    records = [{"prompt": f"Q {n}" + " more" * (30 * (n == 3))} for n in range(40)]
    recipe = config(tmp_path, [write(tmp_path / "p.jsonl", records)], path, kind="prompts", max_prompt_tokens=40)
    prepared, screen = run(recipe)
    assert dropped(prepared) == {("render", "prompt_too_long"): 1}
    assert "plain text, with System:, User: and Assistant:" in screen
    tokens, streams, _ = open_split(recipe.output.corpus_folder, "train")
    assert not streams
    texts = [load_tokenizer(path).decode(ids.tolist()) for ids, _ in documents(tokens, streams)]
    assert all(text.startswith("User: Q ") and text.endswith("\n\nAssistant:") for text in texts)
    assert not verify(recipe.output.corpus_folder, n_threads=1).faults


def test_prompts_of_an_evaluation_set_are_dropped_whole(tmp_path, make_tokenizer):
    words = "the exam asks how many of the seven sailors came back before the evening bell rang"
    records = [{"prompt": f"Q {n}", "completion": "A"} for n in range(30)] + [
        {"prompt": f"Hm, {words}?", "completion": "3"}
    ]
    (tmp_path / "set.txt").write_text(words)
    recipe = config(tmp_path, [write(tmp_path / "d.jsonl", records)], make_tokenizer(), kind="demonstrations")
    one = EvaluationSet("exam", (str(tmp_path / "set.txt"),))
    prepared, _ = run(replace(recipe, decontaminate=DecontaminateConfig((one,), ngram_words=8)))
    assert dropped(prepared) == {("decontaminate", "shares_a_gram"): 1}


def test_prompts_that_are_nearly_equal_count_once(tmp_path, make_tokenizer):
    words = "Write a polite letter to the old miller about the broken wheel of his cart and the winter harvest"
    records = [{"prompt": f"Q {n} of quite another kind", "completion": "A"} for n in range(30)]
    records += [{"prompt": f"{words} {end}", "completion": "Dear miller."} for end in ("please", "now")]
    recipe = config(tmp_path, [write(tmp_path / "d.jsonl", records)], make_tokenizer(), kind="demonstrations")
    prepared, _ = run(replace(recipe, dedup_minhash=FuzzyConfig(min_jaccard=0.8)))
    assert dropped(prepared) == {("dedup_minhash", "near_duplicate"): 1}


def test_parquet_gives_the_same_as_json_lines(tmp_path, make_tokenizer):
    arrow = pytest.importorskip("pyarrow", reason="the extra 'data' is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra 'data' is not installed")
    path = make_tokenizer()
    records = [
        {"messages": [{"role": "user", "content": f"Q {n}"}, {"role": "assistant", "content": f"A {n}"}], "n": 1.5}
        for n in range(30)
    ]
    parquet.write_table(arrow.Table.from_pylist(records), tmp_path / "a.parquet", row_group_size=7)
    for name, source in (("j", write(tmp_path / "a.jsonl", records)), ("p", tmp_path / "a.parquet")):
        run(config(tmp_path / name, [source], path, kind="demonstrations"))
    for file in ("train.bin", "validation.bin", "train_learned.bin"):
        assert (tmp_path / "j/corpus" / file).read_bytes() == (tmp_path / "p/corpus" / file).read_bytes()


def test_a_list_of_a_data_set_gives_the_same_as_json_lines(tmp_path, make_tokenizer):
    path = make_tokenizer()
    records = [{"instruction": f"Q {n}", "input": "", "output": f"A {n}"} for n in range(30)]
    (tmp_path / "list.json").write_text(json.dumps(records, indent=4))
    for name, source in (("j", write(tmp_path / "a.jsonl", records)), ("l", tmp_path / "list.json")):
        run(config(tmp_path / name, [source], path, kind="demonstrations"))
    for file in ("train.bin", "validation.bin", "train_learned.bin"):
        assert (tmp_path / "j/corpus" / file).read_bytes() == (tmp_path / "l/corpus" / file).read_bytes()
    (tmp_path / "cut.json").write_text(json.dumps(records, indent=4)[:1000])
    prepared, _ = run(config(tmp_path / "c", [tmp_path / "cut.json"], path, kind="demonstrations"))
    assert dropped(prepared) == {("read", "truncated"): 1}
    assert prepared.facts["conversations"][0]["unread"]["reason"] == "truncated"


@pytest.mark.parametrize(
    ("kind", "record", "reason"),
    [
        ("demonstrations", {"prompt": "x", "completion": ""}, "empty_turn"),
        ("rankings", {"prompt": "x", "completions": [{"text": "a", "rank": 1}]}, "one_completion"),
        ("rankings", {"prompt": "x", "completions": [{"text": t, "rank": 1} for t in "ab"]}, "all_tied"),
    ],
)
def test_nothing_usable_is_one_line(tmp_path, make_tokenizer, kind, record, reason):
    source = write(tmp_path / "a.jsonl", [record] * 3)
    message = rf"step 'conversations' left none of its 3 documents \(dropped: {reason} 3\)"
    with pytest.raises(ConfigError, match=message):
        run(config(tmp_path, [source], make_tokenizer(), kind=kind))


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not on this machine")
@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("self-instruct-seed-tasks.jsonl.gz", "demonstrations"),
        ("alpaca_eval-rankings-k9.jsonl.gz", "rankings"),
        ("hh-harmless-base-test.jsonl.gz", "rankings"),
    ],
)
def test_published_files(tmp_path, make_tokenizer, file, kind):
    source = tmp_path / "first.jsonl"
    with gzip.open(DATA / file, "rt", encoding="utf-8") as lines:
        source.write_text("".join(islice(lines, 100)))
    prepared, _ = run(config(tmp_path, [source], make_tokenizer(), kind=kind))
    assert 95 <= prepared.description["documents"] <= 100
    assert not verify(prepared.folder, n_threads=1).faults
