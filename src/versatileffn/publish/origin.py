"""What is known of a checkpoint from records that lie with it, and of the model it came from."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from versatileffn.models.hub import hub_options
from versatileffn.models.source import is_gguf
from versatileffn.upcycle import RECEIPT
from versatileffn.workspace.manifest import FILES, read_record

RUN = "run.json"
CARD = "README.md"
LICENCES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*")
"""How files with the terms of use are called."""


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from, as far as it is written down.

    Args:
        receipt: of its conversion; None where none lies with it.
        run: the record of its training; None where it isn't in a run's folder.
        base: what the dense model is called: its hub id, or its folder's or file's name.
        base_id: the same where the Hub, or its cache, has it; None otherwise.
        base_card: the dense model's card; None where it has none.
        licences: files with terms of use, its own and the dense model's.
    """

    receipt: dict[str, Any] | None = None
    run: dict[str, Any] | None = None
    base: str | None = None
    base_id: str | None = None
    base_card: ModelCard | None = None
    licences: list[Path] = field(default_factory=list)

    @property
    def licence(self) -> str | None:
        """What the dense model's card calls its licence."""
        return None if self.base_card is None else self.base_card.data.get("license")


def origin_of(source: str) -> Origin:
    """Read what lies with a checkpoint.

    Args:
        source: a folder, or a hub id, of which nothing is known here.
    """
    folder = Path(source).expanduser()
    run = read_record(folder.parent / RUN) if folder.is_dir() else None
    places = [folder]
    if run is not None:
        start = run.get("config", {}).get("model", {}).get("init_from")
        places += [Path(start)] if start else []
    receipts = (read_record(place / RECEIPT) for place in places)
    receipt = next((found for found in receipts if found is not None), None)
    if receipt is None:
        return Origin(None, run, licences=list(_licences(folder)))
    receipt.pop(FILES, None)
    dense = str(receipt["source"])
    base = Path(dense).expanduser()
    if base.exists() or is_gguf(dense):
        card = ModelCard.load(base / CARD) if (base / CARD).is_file() else None
        licences = [*_licences(base), *_licences(folder)]
        return Origin(receipt, run, base.name, None, card, licences)
    known, card = _on_hub(dense)
    return Origin(
        receipt, run, dense if known else base.name, dense if known else None, card,
        list(_licences(folder)),
    )  # fmt: skip


def _licences(folder: Path) -> Iterator[Path]:
    for pattern in LICENCES if folder.is_dir() else ():
        yield from (path for path in sorted(folder.glob(pattern)) if path.is_file())


def _on_hub(name: str) -> tuple[bool, ModelCard | None]:
    """Whether the Hub, or what was downloaded from it, has a model, and its card."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False, None
    try:
        if hub_options(name) and not isinstance(try_to_load_from_cache(name, "config.json"), str):
            return False, None
        kept = try_to_load_from_cache(name, CARD)
        return True, ModelCard.load(kept if isinstance(kept, str) else name)
    except Exception:  # no such repository, no card, no network: the HTTP library's own errors
        return isinstance(try_to_load_from_cache(name, "config.json"), str), None
