"""Shallow exits held to the deep ones: a second pass under a budget, pulled towards the first.

Both passes draw noise of their own, so what the noise turns is evened out as well as the cap.

Source: in-place distillation of slimmable networks (arXiv 1903.05134), for loops instead of widths.

Legend: B sequences, T tokens, V vocabulary, L max_loops.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from versatileffn.budget import compute_budget
from versatileffn.ffn.router_bias import RouterBias


def consistency_loss(
    model: Any, inputs: dict[str, Any], free_BTV: Tensor, unwrapped: Any
) -> Tensor:
    """Σ KL(free ‖ capped) over the tokens whose loss counts, in nats; divide it by their number.

    Each sequence has a cap of its own, drawn from 1 … L − 1.

    Args:
        model: runs the capped pass; shared among processes, it may be wrapped.
        inputs: of the free pass, labels included.
        free_BTV: its logits. They are what is aimed at, and get no gradient.
        unwrapped: the model itself, which has the budget.
    """
    labels = inputs["labels"]
    most = unwrapped.config.ffn().loops
    caps = torch.randint(1, most, labels.shape[:1], device=labels.device)
    unlabelled = {name: value for name, value in inputs.items() if name != "labels"}
    biases = [module for module in unwrapped.modules() if isinstance(module, RouterBias)]
    loads = [bias.load for bias in biases]  # of the free pass, which alone counts
    with compute_budget(unwrapped, max_loops=caps):
        # Asked for router logits, the model doesn't warn that nobody adds their balance loss.
        capped = model(**unlabelled, output_router_logits=True, use_cache=False)
    for bias, load in zip(biases, loads, strict=True):
        bias.load = load
    counted = labels[:, 1:] != -100
    aim = free_BTV[:, :-1][counted].detach().float().log_softmax(-1)
    found = capped.logits[:, :-1][counted].float().log_softmax(-1)
    return F.kl_div(found, aim, log_target=True, reduction="sum")
