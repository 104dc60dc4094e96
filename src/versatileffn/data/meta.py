"""meta.json: what a token folder holds, as a record."""

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from versatileffn.errors import DataError
from versatileffn.workspace.durable import write_bytes
from versatileffn.workspace.manifest import FILES, files_of

FORMAT = 2
META_FILE = "meta.json"
MAX_SEED = 2**63 - 1
MAX_VOCAB_SIZE = 2**24
"""Tokens; a model has a row of numbers for each."""
TokenBytes = Literal[2, 4]
_REMEDY = "write it again with `versatileffn tokenize`"
_STRICT = ConfigDict(strict=True, extra="forbid")
_Count = Annotated[int, Field(ge=1, lt=2**63)]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class SplitMeta:
    """Size of one split.

    Args:
        documents: number of documents.
        tokens: number of tokens, the end-of-text token after each document included.
        bytes: UTF-8 bytes of the documents' text.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    documents: _Count
    tokens: _Count
    bytes: _Count

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes per token: divides bits per token into bits per byte."""
        return self.bytes / self.tokens if self.tokens else 0.0


@dataclass(frozen=True)
class TokenizerMeta:
    """The tokenizer that made the tokens.

    Args:
        path: its folder, relative to the token folder.
        sha256: digest of its tokenizer.json.
        vocab_size: highest token id plus one; a model's embedding needs at least this many rows.
        eos_token_id: the token after each document.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    path: str
    sha256: _Digest
    vocab_size: Annotated[int, Field(ge=1, le=MAX_VOCAB_SIZE)]
    eos_token_id: Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Windows:
    """What is said of the windows of tokens that were made as such: one question each, say.

    Args:
        tokens: of one window; nobody may read others.
        unscored: how many of them, from the first, no loss counts; the first is never predicted.
        shuffled: training draws an order; otherwise it reads them as they are stored, which is how
            a curriculum is written down.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    tokens: Annotated[int, Field(ge=2)]
    unscored: Annotated[int, Field(ge=1)] = 1
    shuffled: bool = True


@dataclass(frozen=True)
class TokenMeta:
    """Everything in meta.json.

    Args:
        tokenizer: the tokenizer that made the tokens.
        splits: size of each split, by name.
        source: the corpus as the user named it.
        seed: seed of the held-out split.
        token_bytes: width of one stored token in bytes, 2 or 4.
        settings: the other choices that shaped the tokens.
        versions: versions of Python and of the packages that shaped the tokens.
        files: SHA-256 of every other file of the folder, by its name relative to the folder.
        format: version of this layout.
        windows: where the tokens are windows of one length; None for a stream of text.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    tokenizer: TokenizerMeta
    splits: dict[str, SplitMeta]
    source: str
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    token_bytes: TokenBytes
    settings: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, _Digest] = field(default_factory=dict)
    format: int = FORMAT
    windows: Windows | None = None

    @property
    def vocab_size(self) -> int:
        """Highest token id plus one."""
        return self.tokenizer.vocab_size

    @property
    def eos_token_id(self) -> int:
        """The token after each document."""
        return self.tokenizer.eos_token_id

    def shards(self, split: str) -> list[str]:
        """The names of a split's shards, in order."""
        return sorted(n for n in self.files if n.startswith(f"{split}/") and n.endswith(".ds"))

    def save(self, folder: Path) -> None:
        """Write meta.json into `folder`; of a path that isn't UTF-8, `?` replaces what isn't."""
        record = {"format": self.format} | dataclasses.asdict(self)
        if self.windows is None:
            del record["windows"]
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        write_bytes(folder / META_FILE, text.encode("utf-8", "replace"))

    @classmethod
    def load(cls, folder: str | Path) -> "TokenMeta":
        """Read the meta.json of a token folder.

        Raises:
            DataError: the folder is missing, half-written, or of another format.
        """
        folder = Path(folder)
        path = folder / META_FILE
        if not os.path.isdir(folder):  # Path.is_dir raises at a name that is too long
            raise DataError(f"{folder}: no such token folder; {_REMEDY}")
        if not path.is_file():
            raise DataError(
                f"{folder}: no {META_FILE}, so this is not a token folder or only half of one; "
                f"{_REMEDY}"
            )
        try:
            content = path.read_text(encoding="utf-8")
            found = json.loads(content)["format"]
            if found != FORMAT:
                raise DataError(
                    f"{path}: format {found!r}, but this version reads {FORMAT}; {_REMEDY}"
                )
            meta = TypeAdapter(cls).validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise DataError(f"{path}: not a valid {META_FILE} ({reason}); {_REMEDY}") from error
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(f"{path}: not a valid {META_FILE} ({error}); {_REMEDY}") from error
        if (contradiction := meta._contradiction()) is not None:
            raise DataError(f"{path}: {contradiction}; {_REMEDY}")
        return meta

    def _contradiction(self) -> str | None:
        """What can't be true of these numbers together."""
        if self.eos_token_id >= self.vocab_size:
            return (
                f"eos_token_id {self.eos_token_id} lies outside the vocabulary of {self.vocab_size}"
            )
        if self.vocab_size > 2 ** (8 * self.token_bytes):
            return f"token_bytes {self.token_bytes} can't hold vocab_size {self.vocab_size}"
        for name, size in self.splits.items():
            if not size.documents <= size.tokens:
                return f"splits.{name} has {size.documents} documents in {size.tokens} tokens"
        if self.windows is not None and self.windows.unscored >= self.windows.tokens:
            return f"windows has {self.windows.tokens} tokens, all of them unscored"
        if files_of({FILES: self.files}) is None:
            return "files lists none, or a name outside of the folder"
        return None
