"""Make the token files of documents with the real stages, for the tests of data_prep/corpus."""

from collections import Counter

from data_prep.corpus.corpus import shard_names
from data_prep.corpus.shards import FILE_ENDINGS, FileTask, write_file
from data_prep.corpus.split import SplitConfig
from data_prep.corpus.tokenize import TokenizerConfig, tokenize_shard
from data_prep.corpus.tokenizer_training import TrainTask, train_tokenizer
from data_prep.documents.shards import write_shard
from gpt.token_files.files import TokenFile
from gpt.tokenizer.tokenizers import load_tokenizer

SPLIT = SplitConfig(validation_fraction=0.25, seed=3)


def write_shards(folder, documents, n_shards):
    folder.mkdir()
    shards = []
    for number in range(n_shards):
        shards.append(folder / f"{number}.zst")
        with write_shard(shards[-1]) as write:
            for document in documents[number::n_shards]:
                write(document)
    return shards


def build(folder, documents, n_shards, n_files=1):
    """Write the token files of documents in `n_shards` shards to `folder`; return their facts by name."""
    shards = write_shards(folder, documents, n_shards)
    model = folder / "tokenizer.model"
    train_tokenizer(TrainTask(TokenizerConfig(vocab_size=400), SPLIT), tuple(shards), (model,))
    tokenized, totals = [], Counter()
    for number, shard in enumerate(shards):
        outputs = (folder / f"{number}.tokens", folder / f"{number}.npy")
        facts = tokenize_shard(SPLIT, (shard, model), outputs).facts
        assert sum(split["tokens"] for split in facts.values()) * 2 == outputs[0].stat().st_size
        totals.update({(split, key): n for split, about in facts.items() for key, n in about.items()})
        tokenized += outputs
    files = {}
    for split, prefix in (("training", "train"), ("validation", "validation")):
        for number, name in enumerate(shard_names(prefix, n_files)):
            outputs = tuple(folder / f"{name}{ending}" for ending in FILE_ENDINGS)
            task = FileTask(split == "validation", number, n_files, 400)
            files[name] = write_file(task, tuple(tokenized), outputs).facts
            totals.subtract({(split, key): files[name][key] for key in ("tokens", "documents")})
    assert set(totals.values()) == {0}, "shards and files have equal totals"
    return files


def texts(folder, name) -> list[str]:
    tokenizer, file = load_tokenizer(folder / "tokenizer.model"), TokenFile(folder / name)
    found = []
    for n in range(file.n_documents):
        ids = file.read(file.document_start(n), file.document_start(n + 1)).tolist()
        assert ids[-1] == tokenizer.end_of_document_id
        assert tokenizer.end_of_document_id not in ids[:-1]
        found.append(tokenizer.decode(ids[:-1]))
    return found
