"""The card of an exported model: what its records say, and nothing else."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from versatileffn.publish.origin import Origin

TASKS = {"CausalLM": "text-generation", "SequenceClassification": "text-classification"}
"""What the Hub calls each kind of model, by the end of its class's name."""


def model_card(
    title: str, model: Any, origin: Origin, results: Mapping[str, Any] | None = None
) -> ModelCard:
    """Make the card.

    Args:
        title: the folder's name.
        model: what is exported.
        origin: what is known of it.
        results: of `versatileffn evaluate`, of this very model.
    """
    head = next((end for end in TASKS if type(model).__name__.endswith(end)), "CausalLM")
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=TASKS[head],
        license=origin.licence,
        base_model=origin.base_id,
        tags=["versatileffn", "custom_code"],
    )
    run = origin.run
    return ModelCard.from_template(
        data,
        template_str=files(__package__).joinpath("card.md.j2").read_text(encoding="utf-8"),
        title=title,
        head=head,
        model_class=type(model).__name__,
        ffn=model.config.ffn().to_dict(),
        parameters=model.num_parameters(),
        dtype=str(model.dtype).removeprefix("torch."),
        origin=origin,
        receipt=origin.receipt,
        run=run,
        tokens=run and str(run["config"]["data"]["tokens"]).rstrip("/").rpartition("/")[2],
        results=results,
        curve=_columns(model.config.loop_curve or []),
    )


def _columns(curve: list[dict[str, float]]) -> tuple[list[str], list[list[str]]] | None:
    """A curve as a heading and rows; None without one."""
    if not curve:
        return None
    names = list(dict.fromkeys(["penalty", "mean_loops", *curve[0]]))
    rows = [[f"{point[name]:.4g}" for name in names] for point in curve]
    return [name.replace("_", " ") for name in names], rows
