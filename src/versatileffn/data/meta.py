"""meta.json: what a token folder holds, as a record."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from versatileffn.errors import DataError

FORMAT = 1
META_FILE = "meta.json"
_REMEDY = "write it again with `versatileffn tokenize`"


@dataclass(frozen=True)
class SplitMeta:
    """Size of one split.

    Args:
        documents: number of documents.
        tokens: number of tokens, the end-of-text token after each document included.
        bytes: UTF-8 bytes of the documents' text.
    """

    documents: int
    tokens: int
    bytes: int

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

    path: str
    sha256: str
    vocab_size: int
    eos_token_id: int


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

    tokenizer: TokenizerMeta
    splits: dict[str, SplitMeta]
    source: str
    seed: int
    token_bytes: int
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
        """Write meta.json into `folder`."""
        record = {"format": self.format} | dataclasses.asdict(self)
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        (folder / META_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "TokenMeta":
        """Read the meta.json of a token folder.

        Raises:
            DataError: the folder is missing, half-written, or of another format.
        """
        folder = Path(folder)
        path = folder / META_FILE
        if not folder.is_dir():
            raise DataError(f"{folder}: no such token folder; {_REMEDY}")
        if not path.is_file():
            raise DataError(
                f"{folder}: no {META_FILE}, so this is not a token folder or only half of one; "
                f"{_REMEDY}"
            )
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["format"] != FORMAT:
                raise DataError(
                    f"{path}: format {record['format']!r}, but this version reads {FORMAT}; "
                    f"{_REMEDY}"
                )
            return cls(
                **record
                | {
                    "tokenizer": TokenizerMeta(**record["tokenizer"]),
                    "splits": {name: SplitMeta(**s) for name, s in record["splits"].items()},
                }
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path}: not a valid {META_FILE} ({error}); {_REMEDY}") from error
