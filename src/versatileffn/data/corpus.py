"""What SOURCE means: which files or data set a corpus consists of, and who reads them."""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from versatileffn.data.decoding import COMPRESSIONS, naming
from versatileffn.data.default_corpus import (
    TOPICS_FILE,
    default_corpus_name,
    read_topics,
    source_files,
    standard_library,
)
from versatileffn.data.readers import (
    FileReader,
    HubReader,
    JsonlReader,
    ParquetReader,
    TextReader,
    TopicsReader,
)
from versatileffn.errors import ConfigError, DataError

KINDS = {
    "text": (".txt", ".text", ".md", ".rst", ".py"),
    "jsonl": (".jsonl", ".ndjson"),
    "parquet": (".parquet",),
}
TASK_BYTES = 4 * 2**20  # a task, and so a shard, reads about this much
MAX_TASKS = 512
HUB_TASKS = 256  # of 100B tokens each has 0.4B
_HUB_ID = re.compile(r"\w[\w.-]{0,95}/[\w.-]{1,96}")
_USED_BY: dict[str, tuple[type, ...]] = {
    "text_field": (JsonlReader, ParquetReader, HubReader),
    "document_separator": (TextReader,),
    "hub_config": (HubReader,),
    "hub_split": (HubReader,),
}
_READABLE = (
    "it reads " + " ".join(s for kind in KINDS.values() for s in kind) + ", each also .gz .zst .xz"
)


@dataclass(frozen=True)
class Corpus:
    """A corpus that was found, not read yet.

    Args:
        source: how meta.json names it.
        readers: what reads it, one after the other.
        tasks: into how many tasks, and so shards, it divides; the tokens depend on this number,
            never on how many workers share the tasks.
        skipped: files of a folder that no reader knows, counted by suffix.
        identity: what changes when the corpus does, for resuming.
        limit: how many documents to read; None means all.
    """

    source: str
    readers: list[FileReader | HubReader]
    tasks: int
    skipped: dict[str, int] = field(default_factory=dict)
    identity: list[Any] = field(default_factory=list)
    limit: int | None = None

    def notices(self) -> list[str]:
        """What a user should know of the corpus, a line each."""
        if not self.skipped:
            return []
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.skipped.items()))
        return [f"{self.source}: files of other kinds are passed over: {kinds}"]

    def first(self, limit: int) -> "Corpus":
        """The corpus of the first `limit` documents; one task reads it, for only one can count."""
        return dataclasses.replace(self, limit=limit, tasks=1)

    def pieces(self) -> list[Iterator[str]]:
        """The texts file by file; a data set of the Hub, or a limited corpus, is one piece."""
        pieces: list[Iterator[str]] = []
        for reader in self.readers:
            if isinstance(reader, FileReader):
                pieces += [reader.read_file(path) for path in reader.files]
            else:
                pieces.append(reader.run())
        if self.limit is not None:
            return [islice(chain.from_iterable(pieces), self.limit)]
        return pieces


def find_corpus(
    source: str | Path | None,
    *,
    text_field: str | None = None,
    document_separator: str | None = None,
    hub_config: str | None = None,
    hub_split: str | None = None,
    limit_documents: int | None = None,
) -> Corpus:
    """Find the corpus that `source` names.

    Args:
        source: a folder, a file, the id of a Hub data set, or None for Python's own sources.
        text_field: field (JSONL) or column (Parquet, Hub) with the text; None: `text`.
        document_separator: text between two documents of one text file; None: a file is one.
        hub_config: configuration of the Hub data set.
        hub_split: split of the Hub data set; None: `train`.
        limit_documents: read only so many; a Hub data set is then streamed, else downloaded whole.

    Raises:
        ConfigError: an option was given that this kind of corpus makes no use of.
        DataError: nothing is there, or nothing that a reader knows.
    """
    options = {
        "text_field": text_field,
        "document_separator": document_separator,
        "hub_config": hub_config,
        "hub_split": hub_split,
    }
    field = text_field or "text"
    if source is None:
        corpus = _default_corpus(document_separator)
    elif _is_hub_id(source):
        streaming = limit_documents is not None
        corpus = _hub_corpus(str(source), hub_config, hub_split or "train", field, streaming)
    else:
        corpus = _path_corpus(source, field, document_separator)
    for name, value in options.items():
        if value is not None and not any(isinstance(r, _USED_BY[name]) for r in corpus.readers):
            raise ConfigError(
                f"{name}={value!r} has no effect on {corpus.source}, which is read "
                "another way; leave it out"
            )
    return corpus if limit_documents is None else corpus.first(limit_documents)


def _is_hub_id(source: str | Path) -> bool:
    named = _HUB_ID.fullmatch(str(source)) and _kind(Path(source), named=True) is None
    owner = os.path.dirname(source)  # where it is a folder here, a path was meant
    return bool(named) and not os.path.lexists(source) and not os.path.lexists(owner)


def _path_corpus(source: str | Path, text_field: str, document_separator: str | None) -> Corpus:
    path = Path(source)
    if source == "":
        raise DataError("SOURCE is empty text; name a file or folder, `.` for the current one")
    if os.path.isdir(path):  # unlike Path's, these take a name that is too long for an answer
        root, found, skipped = path, *_scan_folder(path)
        if not found:
            seen = ", ".join(sorted(skipped)) or "no files at all"
            raise DataError(f"{path}: an empty corpus, found {seen}; {_READABLE}")
    elif os.path.isfile(path):
        kind = _kind(path, named=True)
        if kind is None:
            suffix = "".join(path.suffixes[-2:]) or "no suffix"
            raise DataError(f"{path}: unknown kind of file ({suffix}); {_READABLE}")
        root, found, skipped = path.parent, {kind: [path.name]}, {}
    elif os.path.exists(path):
        raise DataError(f"{source}: neither a file nor a folder; save its contents as a file")
    else:
        raise DataError(f"{source}: no such file or folder; a Hub data set is named owner/name")
    readers: list[FileReader | HubReader] = []
    if "text" in found:
        readers.append(TextReader(str(root), found["text"], document_separator))
    if "jsonl" in found:
        readers.append(JsonlReader(str(root), found["jsonl"], text_field))
    if "parquet" in found:
        readers.append(ParquetReader(str(root), found["parquet"], text_field))
    return _local_corpus(str(source), root, readers, skipped)


def _default_corpus(document_separator: str | None) -> Corpus:
    root = standard_library()
    readers: list[FileReader | HubReader] = [
        TextReader(str(root), source_files(root), document_separator)
    ]
    if read_topics() and (root / TOPICS_FILE).is_file():
        readers.append(TopicsReader(str(root), [TOPICS_FILE]))
    return _local_corpus(default_corpus_name(), root, readers, {})


def _hub_corpus(
    name: str, config: str | None, split: str, text_field: str, streaming: bool
) -> Corpus:
    reader = HubReader(name, config, split, text_field, streaming)
    tasks = 1 if streaming else HUB_TASKS
    source = "/".join(filter(None, (name, config, split)))
    return Corpus(source, [reader], tasks, identity=[name, config, split])


def _local_corpus(
    source: str, root: Path, readers: list[FileReader | HubReader], skipped: dict[str, int]
) -> Corpus:
    names = [name for r in readers if isinstance(r, FileReader) for name in r.files]
    with naming(str(root)):
        stats = [(root / name).stat() for name in names]
    size = sum(s.st_size for s in stats)
    tasks = max(1, min(len(names), MAX_TASKS, round(size / TASK_BYTES)))
    identity = [(n, s.st_size, s.st_mtime_ns) for n, s in zip(names, stats, strict=True)]
    where = [str(root.resolve()), identity]
    return Corpus(source, readers, tasks, skipped, where)


def _scan_folder(root: Path) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Files below `root` by kind, sorted, and the suffixes of others. Hidden ones don't count."""
    found: dict[str, list[str]] = {}
    skipped: Counter[str] = Counter()
    for path in sorted(_files_below(root)):
        kind = _kind(path, named=False)
        if kind is None:
            skipped[path.suffix or path.name] += 1
        else:
            found.setdefault(kind, []).append(path.relative_to(root).as_posix())
    return found, dict(skipped)


def _files_below(root: Path) -> Iterator[Path]:
    """Every file, links to files included; what is hidden or can't be followed is not.

    Raises:
        ResourceError: a folder can't be read.
    """

    def fail(error: OSError) -> None:
        with naming(str(error.filename)):
            raise error

    for parent, folders, names in os.walk(root, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _kind(path: Path, named: bool) -> str | None:
    """Which reader knows the file.

    `.json` is JSON lines where the user named the file or it is compressed, as large corpora are;
    in a folder a plain .json is rather some tool's settings.
    """
    path = Path(path.name.lower())
    compressed = path.suffix in COMPRESSIONS
    suffix = (path.with_suffix("") if compressed else path).suffix
    if suffix == ".json" and (named or compressed):
        return "jsonl"
    return next((kind for kind, suffixes in KINDS.items() if suffix in suffixes), None)
