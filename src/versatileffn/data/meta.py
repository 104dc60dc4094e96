"""meta.json: what a token folder holds, as a record."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from versatileffn.errors import DataError

FORMAT = 1
META_FILE = "meta.json"
MAX_SEED = 2**63 - 1
_REMEDY = "write it again with `versatileffn tokenize`"
_STRICT = ConfigDict(strict=True, extra="forbid")
_Count = Annotated[int, Field(ge=1)]


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
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    vocab_size: Annotated[int, Field(ge=1, le=2**32)]
    eos_token_id: Annotated[int, Field(ge=0)]


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
        format: version of this layout.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    tokenizer: TokenizerMeta
    splits: dict[str, SplitMeta]
    source: str
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    token_bytes: Literal[2, 4]
    settings: dict[str, Any]
    versions: dict[str, str]
    format: int = FORMAT

    @property
    def vocab_size(self) -> int:
        """Highest token id plus one."""
        return self.tokenizer.vocab_size

    @property
    def eos_token_id(self) -> int:
        """The token after each document."""
        return self.tokenizer.eos_token_id

    def save(self, folder: Path) -> None:
        """Write meta.json into `folder`; of a path that isn't UTF-8, `?` replaces what isn't."""
        record = {"format": self.format} | dataclasses.asdict(self)
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        (folder / META_FILE).write_bytes(text.encode("utf-8", "replace"))

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
        if meta.eos_token_id >= meta.vocab_size:
            raise DataError(
                f"{path}: eos_token_id {meta.eos_token_id} lies outside the vocabulary of "
                f"{meta.vocab_size}; {_REMEDY}"
            )
        return meta
