"""Tokens to measure a model on: a task's prompts, a token folder's held-out split, or a text."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from versatileffn.data.corpus import find_corpus
from versatileffn.data.meta import META_FILE
from versatileffn.data.packed import PackedDataset
from versatileffn.errors import ConfigError, DataError
from versatileffn.evaluation.perplexity import check_window
from versatileffn.evaluation.tasks.catalogue import find_tasks
from versatileffn.evaluation.tasks.loading import context_length
from versatileffn.evaluation.tasks.requests import build_items
from versatileffn.evaluation.tasks.tokenizer import RequestTokenizer
from versatileffn.models.checkpoint import quiet_transformers
from versatileffn.models.tokenizer import load_own_tokenizer


def token_sequences(name: str, model: Any, source: str, limit: int | None) -> list[list[int]]:
    """What a model is to read.

    Args:
        name: where the model was loaded from, for its tokenizer.
        model: its config says how much it takes.
        source: a folder of `versatileffn tokenize`, else a corpus as that verb takes it, else names
            of tasks.
        limit: only the first so many windows, or items of each task; None takes all.

    Raises:
        DataError: the source can't be read, the model has no tokenizer, or not the source's.
        ConfigError: there is no such task.
    """
    window, _ = check_window(model, None, None)
    if (Path(source) / META_FILE).is_file():
        dataset = PackedDataset(source, "val", window)
        count = min(limit or len(dataset), len(dataset))
        found = [dataset[index]["input_ids"].tolist() for index in range(count)]
    elif Path(source).exists():
        with quiet_transformers():
            found = list(islice(_windows(name, source, window), limit))
    elif Path(source).suffix or Path(source).name != source:
        raise DataError(f"there is no {source}: give a text file or folder, or a task's name")
    else:
        found = _prompts(name, model, source, limit)
    if max((max(ids) for ids in found if ids), default=0) >= model.config.vocab_size:
        raise DataError(
            f"{source} has tokens outside the vocabulary of {name}: measure on what its own "
            "tokenizer makes"
        )
    return found


def sequences_of(
    name: str, model: Any, texts: Sequence[str], tasks: str | None, limit: int | None
) -> list[list[int]]:
    """What a model is to read: some texts, or a task's prompts; see `token_sequences`.

    Raises:
        ConfigError: neither or both are given, or there is no such task.
        DataError: a text isn't there, can't be read, or is empty.
    """
    if bool(texts) == (tasks is not None):
        raise ConfigError("give either texts or --task NAME (arc_challenge is the paper's)")
    for text in texts:
        if not Path(text).exists():
            raise DataError(f"there is no {text}: give a text file or folder, or --task NAME")
    sources = list(texts) if tasks is None else [tasks]
    read = (ids for source in sources for ids in token_sequences(name, model, source, limit))
    found = [ids for ids in read if len(ids) > 1]
    if not found:
        raise DataError(f"{', '.join(sources)} has no two tokens in a row: give a longer text")
    return found


def _windows(name: str, source: str, window: int) -> Iterator[list[int]]:
    """The windows of each document, read as far as they are asked for."""
    words = _tokenizer(name)
    for piece in find_corpus(source).pieces():
        for document in piece:
            ids = words.stream(document)
            while found := list(islice(ids, window)):
                yield found


def _prompts(name: str, model: Any, tasks: str, limit: int | None) -> list[list[int]]:
    """Every choice of a task's items, as the model reads it to score it."""
    words, longest = _tokenizer(name), context_length(model)
    return [
        list(request.query)
        for task in find_tasks(tasks)
        for item in build_items(task, words, longest, limit)
        for request in item.requests
    ]


def _tokenizer(name: str) -> RequestTokenizer:
    try:
        return RequestTokenizer(load_own_tokenizer(name))
    except DataError as error:
        raise DataError(
            f"{error}: copy the one it was trained with into its folder, or measure on a token "
            "folder"
        ) from None
