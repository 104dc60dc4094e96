"""Which tokenizer: any Hugging Face one, OLMo's, or a byte-level BPE trained on the corpus."""

import dataclasses
import difflib
import hashlib
import importlib.util
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from versatileffn.data.long_text import parts_at_spaces
from versatileffn.data.meta import MAX_VOCAB_SIZE, META_FILE, TokenizerMeta, TokenMeta
from versatileffn.errors import ConfigError, DataError, VersatileFFNError
from versatileffn.memory import raise_out_of_memory
from versatileffn.models.hub import hub_options
from versatileffn.models.tokenizer import auto_tokenizer
from versatileffn.workspace.durable import remove, rename, sync_tree

EOS_TOKEN = "<|endoftext|>"
TOKENIZER_FOLDER = "tokenizer"
MIN_VOCAB_SIZE = 257  # every byte, and the end of text
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_OLMO_FILE = "tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json"
_USUAL_EOS = (EOS_TOKEN, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")


def train_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE; it gives back every text exactly.

    Args:
        texts: the documents to learn from.
        vocab_size: tokens wanted, bytes and end of text included; few texts may give fewer.

    Raises:
        ConfigError: vocab_size has no room for the 256 bytes and the end of text.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ConfigError(f"vocab_size={vocab_size} must be at least {MIN_VOCAB_SIZE}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    parts = (part for text in texts for part in parts_at_spaces(text))
    tokenizer.train_from_iterator(parts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS_TOKEN, clean_up_tokenization_spaces=False
    )


def find_tokenizer(
    name: str, eos_token: str | None = None, *, for_documents: bool = True
) -> PreTrainedTokenizerFast:
    """Load an existing tokenizer.

    Args:
        name: `olmo`, a tokenizer.json, a folder, or the id of a Hub repository.
        eos_token: the token that ends a document, where the tokenizer doesn't say.
        for_documents: it is to separate documents, and so must have an end of text.

    Raises:
        DataError: there is no such tokenizer, it isn't a fast one, or it has no end of text.
    """
    path = Path(name)
    try:
        if name == "olmo":
            tokenizer: PreTrainedTokenizerFast = _from_file(_olmo_file())
        elif path.is_file():
            tokenizer = _from_file(path)
        elif (path / META_FILE).is_file():
            tokenizer = load_tokenizer(path)
        elif (path / "tokenizer.json").is_file() and not (path / "tokenizer_config.json").is_file():
            tokenizer = _from_file(path / "tokenizer.json")
        elif name and path.is_dir():
            tokenizer = cast(PreTrainedTokenizerFast, auto_tokenizer(name))
        else:
            _check_hub_id(name, ["olmo", "bpe"] if for_documents else ["olmo"])
            tokenizer = _from_hub(name)
    except VersatileFFNError:
        raise
    except Exception as error:  # the loaders raise whatever their format's parser does
        raise_out_of_memory(error)
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{name}: no tokenizer could be loaded from it ({reason})") from error
    if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        raise DataError(f"{name}: not a fast tokenizer (no tokenizer.json); convert it first")
    if (largest := max(tokenizer.get_vocab().values(), default=0)) >= MAX_VOCAB_SIZE:
        raise DataError(
            f"{name}: has a token {largest}, and ids must be below {MAX_VOCAB_SIZE}: a model keeps "
            "a row for each; number its tokens anew"
        )
    return _with_eos(tokenizer, eos_token, name) if for_documents else tokenizer


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a token folder: the one that made its tokens.

    Raises:
        DataError: it's missing, damaged, or not the one that meta.json describes.
    """
    described = TokenMeta.load(folder).tokenizer
    path = Path(folder) / TOKENIZER_FOLDER
    if not (path / "tokenizer.json").is_file():
        raise DataError(f"{path}: no tokenizer.json in this token folder; tokenize again")
    tokenizer = find_tokenizer(str(path))
    found = dataclasses.asdict(describe(tokenizer, Path(folder)))
    for name, value in dataclasses.asdict(described).items():
        if found[name] != value:
            raise DataError(
                f"{path}: another tokenizer than the one that made the tokens (its {name} is "
                f"{found[name]}, {META_FILE} says {value}); put that back or tokenize again"
            )
    return tokenizer


def save_tokenizer(
    tokenizer: PreTrainedTokenizerFast, folder: Path, scratch: Path
) -> TokenizerMeta:
    """Save the tokenizer below a token folder, whole and on disk or not at all; describe it.

    Args:
        tokenizer: what is saved.
        folder: the token folder.
        scratch: a folder on the same disk, of the caller's own.
    """
    unfinished = scratch / TOKENIZER_FOLDER
    remove([unfinished])
    tokenizer.save_pretrained(unfinished)
    sync_tree(unfinished)
    rename(unfinished, folder / TOKENIZER_FOLDER)
    return describe(tokenizer, folder)


def describe(tokenizer: PreTrainedTokenizerFast, folder: Path) -> TokenizerMeta:
    """What meta.json says about the tokenizer saved below `folder`."""
    content = (folder / TOKENIZER_FOLDER / "tokenizer.json").read_bytes()
    return TokenizerMeta(
        path=TOKENIZER_FOLDER,
        sha256=hashlib.sha256(content).hexdigest(),
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        eos_token_id=tokenizer.eos_token_id,
    )


def _olmo_file() -> Path:
    """The OLMo tokenizer that ai2-olmo-eval carries; found without importing that package."""
    spec = importlib.util.find_spec("olmo_eval")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "olmo: this tokenizer comes with ai2-olmo-eval, which isn't installed; "
            "pip install -e '.[eval]'"
        )
    path = Path(spec.submodule_search_locations[0]) / _OLMO_FILE
    if not path.is_file():
        raise DataError(f"olmo: {path} is missing; reinstall the extra `eval`")
    return path


def _from_file(path: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(path), clean_up_tokenization_spaces=False)


def _with_eos(
    tokenizer: PreTrainedTokenizerFast, eos_token: str | None, name: str
) -> PreTrainedTokenizerFast:
    vocab = tokenizer.get_vocab()
    if eos_token is not None and eos_token not in vocab:
        raise DataError(f"{name}: has no token {eos_token!r}; choose --eos-token from its tokens")
    eos_token = eos_token or tokenizer.eos_token
    eos_token = eos_token or next((token for token in _USUAL_EOS if token in vocab), None)
    if eos_token is None or eos_token not in vocab:
        raise DataError(
            f"{name}: has no end-of-text token to separate documents; name one of its tokens "
            "with --eos-token"
        )
    tokenizer.eos_token = eos_token
    return tokenizer


def _check_hub_id(name: str, own: list[str]) -> None:
    """Raise DataError for what is rather a path, or one of our own names with a slip in it."""
    slip = difflib.get_close_matches(name.lower(), own, n=1)
    owner = os.path.dirname(name)
    if (
        slip
        or not _HUB_ID.fullmatch(name)
        or name.endswith(".json")
        or os.path.lexists(name)
        or (owner and os.path.lexists(owner))
    ):
        remedy = (
            f"did you mean `{slip[0]}`?"
            if slip
            else f"name a tokenizer.json, a folder, a Hub id, or `{'` or `'.join(own)}`"
        )
        raise DataError(f"{name or 'an empty name'}: no such tokenizer; {remedy}")


def _from_hub(name: str) -> PreTrainedTokenizerFast:
    return cast(PreTrainedTokenizerFast, auto_tokenizer(name, **hub_options(name)))
