"""What people name as a checkpoint: a folder, a hub id, or a .gguf file."""

import os
from pathlib import Path
from typing import Any

from versatileffn.errors import CheckpointError
from versatileffn.models.hub import hub_options

GGUF = ".gguf"


def is_gguf(source: str | Path) -> bool:
    """Whether a checkpoint is one GGUF file."""
    return str(source).lower().endswith(GGUF)


def where_to_load(source: str | Path) -> tuple[str, dict[str, Any]]:
    """How Transformers' loaders are told of a checkpoint: a GGUF file is named by two things.

    Raises:
        HfHubHTTPError: the Hub doesn't have it.
    """
    path = Path(source).expanduser()
    if is_gguf(source):
        return str(path.parent), {"gguf_file": path.name}
    return (str(path), {}) if path.is_dir() else (str(source), hub_options(str(source)))


def check_source(source: str) -> None:
    """Say what is wrong with a path before a hub client takes it for an id.

    Raises:
        CheckpointError: it is none of the three.
    """
    if not source:
        raise CheckpointError("no checkpoint was named: give a folder, a hub id, or a .gguf file")
    try:
        source.encode()  # what reads weights and tokenizers can't open files under other names
        folder = Path(source).expanduser()
        exists, is_folder = os.path.lexists(folder), folder.is_dir()
        has_model = is_folder and (folder / "model" / "config.json").is_file()
        has_config = is_folder and (folder / "config.json").is_file()
        is_loop = exists and not os.path.exists(folder)
    except UnicodeEncodeError:
        raise CheckpointError(f"{source!r} isn't UTF-8: rename it") from None
    except (OSError, ValueError, RuntimeError) as error:  # the last: ~ of nobody
        raise CheckpointError(f"{source[:80]!r} is no path and no hub id ({error})") from None
    if is_loop:
        raise CheckpointError(f"{source} is a link that leads nowhere: give what it should lead to")
    if is_folder and has_model and not has_config:
        raise CheckpointError(f"{source} is a run folder: give {source}/model, its checkpoint")
    if is_gguf(source):
        if not folder.is_file():
            raise CheckpointError(f"{source}: there is no such file")
        return
    if exists and not is_folder:
        raise CheckpointError(f"{source} is a file: give the folder that holds config.json")
    looks_like_path = source.startswith((".", "~", os.sep)) or source.rstrip("/").count("/") > 1
    if not exists and (looks_like_path or source.endswith("/")):
        raise CheckpointError(f"{source} is no readable checkpoint: there is no such folder")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for one-line reports."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
