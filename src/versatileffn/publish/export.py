"""A folder that loads where this package isn't installed: with its code, or as a dense model."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from versatileffn.errors import CheckpointError, ConfigError, DataError
from versatileffn.evaluation.tasks.loading import model_sha256
from versatileffn.ffn.registry import CONTROLLERS
from versatileffn.models.checkpoint import load_checkpoint, read_config, without_progress_bars
from versatileffn.models.family import HEADS, is_reuse, make_classes, model_class
from versatileffn.models.shares import shares_in
from versatileffn.models.table import OURS, family_of
from versatileffn.models.tokenizer import load_own_tokenizer
from versatileffn.portable.modules import is_own
from versatileffn.portable.source import MODELLING
from versatileffn.provenance import versions
from versatileffn.publish.card import model_card
from versatileffn.publish.origin import CARD, Origin, origin_of
from versatileffn.to_dense import to_dense
from versatileffn.workspace.durable import check_space, write_bytes, write_json, writing
from versatileffn.workspace.folder import check_free, new_folder
from versatileffn.workspace.manifest import FILES, digests

RECORD = "export.json"
BASE_CARD = "base_card.md"


def export(
    source: str,
    out: Path,
    *,
    overwrite: bool = False,
    results: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write a checkpoint of ours as a folder that loads with `trust_remote_code=True` anywhere.

    Args:
        source: a folder or a hub id.
        out: the folder to write; it appears whole or not at all.
        overwrite: replace an older export.
        results: of `versatileffn evaluate`, for the card.

    Returns:
        What its reader has to know, a line each.

    Raises:
        CheckpointError: the checkpoint can't be read, or is none of ours.
        ConfigError: the place is taken, the controller is code of the user's, or the results are
            another model's.
    """
    target = check_free(out, RECORD, overwrite, source=source)
    config = _read_reuse_config(source)
    _check_controller(config, source)
    model, origin = _load(source, config), origin_of(source)
    if results is not None:
        _check_results(results, source)
    model.config.auto_map = auto_map(config)
    card = str(model_card(target.name, model, origin, results))
    notes = _write(model, source, out, overwrite, origin, card)
    if origin.receipt is not None and origin.licence is None:
        notes.append(f"no card of {origin.base} says its licence: write it into {CARD}")
    return notes


def export_dense(source: str, out: Path, *, overwrite: bool = False) -> list[str]:
    """Write a checkpoint of ours as the dense model that it computes, of Transformers' own class.

    A dense checkpoint whose weights are in shares is put together.

    Args:
        source, out, overwrite: as for `export`.

    Returns:
        What its reader has to know, a line each.

    Raises:
        CheckpointError: the checkpoint can't be read, or is none of ours.
        ConfigError: the place is taken, or the reuse adds something, see `to_dense`.
    """
    check_free(out, RECORD, overwrite, source=source)
    config = read_config(source)
    if shares_in(source) is not None and not is_reuse(config):
        model = load_checkpoint(model_class(config), source, config)
    else:
        model = to_dense(_load(source, _read_reuse_config(source)))
    return _write(model, source, out, overwrite, origin_of(source))


def _read_reuse_config(source: str) -> Any:
    """The config of a checkpoint of ours.

    Raises:
        CheckpointError: it is dense already.
    """
    config = read_config(source)
    if not is_reuse(config) and shares_in(source) is not None:
        raise CheckpointError(
            f"{source} is a dense {config.model_type} model in shares: give --dense, and it is put "
            "together"
        )
    if not is_reuse(config):
        raise CheckpointError(
            f"{source} is a dense {config.model_type} model, which Transformers loads everywhere: "
            "give what `versatileffn upcycle` or `train` wrote"
        )
    return config


def _load(source: str, config: Any) -> Any:
    """A checkpoint of ours, with the head that it was saved with."""
    made = make_classes(config.model_type.removeprefix(OURS))
    named = (config.architectures or [None])[0]
    cls = next((c for c in made.values() if c.__name__ == named), AutoModelForCausalLM)
    return load_checkpoint(cls, source, config)


def _write(
    model: Any, source: str, out: Path, overwrite: bool, origin: Origin, card: str | None = None
) -> list[str]:
    """Write a model, its tokenizer and its papers, and last the record of all files."""
    target = check_free(out, RECORD, overwrite, source=source)
    check_space(target, sum(t.numel() * t.dtype.itemsize for t in model.state_dict().values()))
    tokenizer, notes = None, []
    try:
        tokenizer = load_own_tokenizer(source)
    except DataError as error:
        notes.append(f"no tokenizer was copied ({error})")
    with new_folder(out, RECORD, overwrite) as folder, writing(out), without_progress_bars():
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        _write_papers(folder, card, origin)
        record = {
            "source": Path(source).name,
            "receipt": origin.receipt and origin.receipt | {"source": origin.base},
            "versions": versions("torch", "transformers"),
            FILES: digests(folder),
        }
        write_json(folder / RECORD, record)
    return notes


def auto_map(config: Any) -> dict[str, str]:
    """Which class of the file each of Transformers' Auto classes takes, by its name."""
    made = make_classes(config.model_type.removeprefix(OURS))
    family = family_of(config.model_type)
    classes = {"AutoConfig": family.config, "AutoModel": family.base}
    classes |= {auto.__name__: ending for ending, (auto, _) in HEADS.items()}
    return {
        auto: f"{MODELLING}.{made[family.prefix + ending].__name__}"
        for auto, ending in classes.items()
        if family.prefix + ending in made
    }


def _check_controller(config: Any, source: str) -> None:
    """Refuse decisions by code that the file doesn't hold.

    Raises:
        ConfigError: with the remedy.
    """
    name = getattr(config.ffn(), "controller", None)
    cls = CONTROLLERS.get(name) if name else None
    if name and (cls is None or not is_own(cls.__module__)):
        where = f"in {cls.__module__}" if cls else "not imported here"
        raise ConfigError(
            f"{source} lets controller={name!r} decide, which is code of yours ({where}) that an "
            "exported folder would lack: share the checkpoint as it is, together with that module "
            "and this package"
        )


def _check_results(results: Mapping[str, Any], source: str) -> None:
    """Refuse results that aren't this model's.

    Raises:
        ConfigError: with the remedy.
    """
    import torch

    kept = getattr(torch, str(results.get("dtype")), None)
    if not isinstance(kept, torch.dtype) or "tasks" not in results:
        raise ConfigError("--results is no results.json of `versatileffn evaluate`: name one")
    model = load_checkpoint(AutoModelForCausalLM, source, read_config(source), dtype=kept)
    if model_sha256(model) != results.get("model_sha256"):
        raise ConfigError(
            f"the results are those of {results.get('model')}, another model than {source}: run "
            f"`versatileffn evaluate {source}`, or leave --results out"
        )


def _write_papers(folder: Path, card: str | None, origin: Origin) -> None:
    """The card, the dense model's card, and terms of use; the dense model's win over others."""
    if card is not None:
        write_bytes(folder / CARD, card.encode())
    if origin.base_card is not None:
        write_bytes(folder / BASE_CARD, str(origin.base_card).encode())
    for path in reversed(origin.licences):
        shutil.copyfile(path, folder / path.name)
