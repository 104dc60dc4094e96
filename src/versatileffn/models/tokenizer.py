"""The tokenizer that lies with a checkpoint."""

import warnings
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from versatileffn.errors import DataError, VersatileFFNError
from versatileffn.memory import raise_out_of_memory
from versatileffn.models.checkpoint import quiet_transformers, read_any_config
from versatileffn.models.source import first_line, is_gguf, where_to_load
from versatileffn.models.trust import RemoteCodeError, trusts_remote_code, wants_remote_code


def load_own_tokenizer(source: str | Path) -> Any:
    """The tokenizer that lies with a checkpoint.

    Args:
        source: a folder, a hub id, or a .gguf file.

    Raises:
        DataError: there is none, or it doesn't load.
        RemoteCodeError: it would run code of its own, which isn't trusted.
    """
    try:
        where, options = where_to_load(source)
        tokenizer = auto_tokenizer(where, **options)
    except VersatileFFNError:
        raise
    except Exception as error:  # loaders fail in many ways
        raise_out_of_memory(error)
        raise DataError(f"{source} has no tokenizer that loads ({first_line(error)})") from None
    if is_gguf(source):
        _follow_config(tokenizer, source)
    return tokenizer


def auto_tokenizer(where: str, **options: Any) -> Any:
    """Transformers' AutoTokenizer, which asks nothing, and whose result can be saved safely.

    Args:
        where: a folder or a hub id.
        options: further ones of `from_pretrained`.

    Raises:
        RemoteCodeError: it would run code of its own, which isn't trusted.
        DataError: one of its chat templates couldn't be saved.
        Exception: whatever Transformers says about a damaged one.
    """
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                where, trust_remote_code=trusts_remote_code(), **options
            )
    except Exception as error:
        if wants_remote_code(error):
            raise RemoteCodeError(f"the tokenizer of {where}") from None
        raise
    templates = tokenizer.chat_template
    for name in templates if isinstance(templates, dict) else ():
        # Each is saved as a file of that name: a slash would put it elsewhere.
        if not isinstance(name, str) or Path(name).name != name or not name.isprintable():
            raise DataError(
                f"the tokenizer of {where} has a chat template called {name!r}, which is no file's "
                "name: rename it in its tokenizer_config.json"
            )
    return tokenizer


def _follow_config(tokenizer: Any, source: str | Path) -> None:
    """End texts with the token that the model was told to end them with.

    A GGUF file names it once, but Transformers reads it by two ways, one of which mixes up the
    beginning's and the end's for some vocabularies.
    """
    wanted = read_any_config(source).eos_token_id
    ids = wanted if isinstance(wanted, list) else [wanted]
    if wanted is None or tokenizer.eos_token_id in ids:
        return
    token = tokenizer.convert_ids_to_tokens(ids[0])
    warnings.warn(
        f"{source}: its tokenizer ends a text with {tokenizer.eos_token!r}, its config with "
        f"{token!r}: the config's is taken",
        stacklevel=3,
    )
    tokenizer.eos_token = token
