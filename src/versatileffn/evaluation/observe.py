"""What a model decides about each token of some text.

The one place where decisions are read: loop statistics, reports and analyses are reducers over what
`observe` yields, and hold no batch longer than they need it. Where somebody else runs the model, as
`generate` does, `overhear` has the decisions of the very passes that were run.

Legend: B sequences, T tokens of each, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from versatileffn.errors import CheckpointError, ConfigError
from versatileffn.evaluation.likelihood import target_nats
from versatileffn.ffn.moe import Routing
from versatileffn.ffn.plan import ReusePlan
from versatileffn.models.family import is_reuse
from versatileffn.models.mode import evaluating

Batch = Tensor | Mapping[str, Tensor]
"""Token ids [B, T]; or `input_ids` and, where some are padding, `attention_mask`."""


@dataclass(frozen=True)
class Observed:
    """What was decided about one batch.

    Args:
        ids_BT: the tokens, as they were given.
        mask_BT: 0 where a token is padding; None where none is.
        decisions: one for each layer, for tokens of shape [B, T]: a plan, or a routing where
            experts are real. None of a dense model of Transformers' own.
        logits_BTV: what the model expects after each token.
    """

    ids_BT: Tensor
    mask_BT: Tensor | None
    decisions: tuple[ReusePlan | Routing, ...]
    logits_BTV: Tensor

    def surprise(self) -> Tensor:
        """−ln of the probability that each token had after those before it, in nats, float64
        [B, T]; NaN for the first of a sequence, which nothing foretells.
        """
        logits_BSV = self.logits_BTV[:, :-1]
        targets_M = self.ids_BT[:, 1:].flatten().to(logits_BSV.device)
        nats_BS = target_nats(logits_BSV.flatten(0, 1), targets_M).view(logits_BSV.shape[:2])
        return torch.nn.functional.pad(nats_BS, (1, 0), value=torch.nan)


def observe(model: Any, batches: Iterable[Batch]) -> Iterator[Observed]:
    """Let a model read, as at inference, and yield what it decides.

    Evaluation mode and the lack of gradients last as long as one forward pass.

    Args:
        model: a causal language model of any family and variant, or a dense one.
        batches: what it reads.

    Raises:
        ConfigError: there are no tokens.
        CheckpointError: a result isn't finite, so that decisions mean nothing.
    """
    options = {"output_reuse_plans": True} if is_reuse(model.config) else {}
    seen = False
    for batch in batches:
        ids_BT, mask_BT = (
            (batch, None)
            if isinstance(batch, Tensor)
            else (batch["input_ids"], batch.get("attention_mask"))
        )
        mask = None if mask_BT is None else mask_BT.to(model.device)
        with evaluating(model):
            out = model(
                input_ids=ids_BT.to(model.device), attention_mask=mask, use_cache=False, **options
            )
        if not out.logits.isfinite().all():
            raise CheckpointError(
                f"{model.name_or_path or 'the model'} gives logits that are NaN or infinite: its "
                "weights or its config.json are damaged, or it diverged"
            )
        seen = True
        decisions = tuple(out.reuse_plans) if options else ()
        yield Observed(ids_BT, mask_BT, decisions, out.logits)
    if not seen:
        raise ConfigError("no tokens to observe: give at least one window")


@contextmanager
def overhear(
    model: Any, hear: Callable[[tuple[ReusePlan | Routing, ...]], object]
) -> Iterator[None]:
    """While the block runs, hand on what each forward pass decided, as soon as it is over.

    Args:
        model: one of ours, of any variant.
        hear: is given one decision for each layer, for the tokens of that pass: with a cache, those
            that are new.
    """

    def ask(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "output_reuse_plans": True}

    def tell(_: Any, __: Any, output: Any) -> None:
        hear(tuple(output.reuse_plans))

    hooks = [
        model.register_forward_pre_hook(ask, with_kwargs=True),
        model.register_forward_hook(tell),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
