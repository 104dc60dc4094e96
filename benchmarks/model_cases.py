"""Cases of a whole language model: prefill, decode with the KV cache, and the training step.

Legend: B sequences, T tokens of each, V vocabulary.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from versatileffn.bench.distributions import PrescribedController, loop_counts
from versatileffn.bench.flops import FlopCounter
from versatileffn.bench.layers import MODEL_TOLERANCE, check_equal
from versatileffn.bench.straightforward import run_straightforward
from versatileffn.bench.timing import Budget, Timings, measure, waits_for
from versatileffn.models.llama import VersatileLlamaConfig, VersatileLlamaForCausalLM

BASELINES: dict[str, dict[str, Any]] = {
    "dense": {"ffn_variant": "dense"},
    "2-loop": {"ffn_variant": "k-loop", "num_loops": 2},
    "4-loop": {"ffn_variant": "k-loop", "num_loops": 4},
    "moe": {"ffn_variant": "moe"},
}
WORK = ("prefill", "decode", "training")


def build(
    kind: str, shape: dict[str, Any], loop_count: Tensor, device: str, dtype: torch.dtype, seed: int
) -> VersatileLlamaForCausalLM:
    """A randomly initialized model.

    Args:
        kind: a baseline, an execution of the reuse layer, or `straightforward`.
        shape: fields of `LlamaConfig`.
        loop_count: prescribed ℓ̂, see `PrescribedController`.
        seed: of the weights; the same for models that are compared.
    """
    torch.manual_seed(seed)
    variant = BASELINES.get(kind, {})
    if kind not in BASELINES and kind != "straightforward":
        variant = {"execution": kind}
    config = VersatileLlamaConfig(
        **shape, **variant, tau=1.0, bos_token_id=None, eos_token_id=None, pad_token_id=0
    )
    net = VersatileLlamaForCausalLM(config)
    layers: Any = net.model.layers
    for number, layer in enumerate(layers):
        if layer.controller is not None:
            layer.controller = PrescribedController(layer.controller, loop_count, seed + number)
        if kind == "straightforward":
            layer.apply_ffn = partial(_straightforward, layer)
    return net.to(device=device, dtype=dtype)  # type: ignore[call-arg]


def _straightforward(layer: Any, hidden: Tensor) -> Tensor:
    plan = layer.controller(hidden).flatten()
    flat = hidden.reshape(-1, hidden.shape[-1])
    norm = layer.post_attention_layernorm
    return run_straightforward(flat, norm, layer.mlp, plan).view_as(hidden)


def model(
    budget: Budget,
    device: str,
    work: str,
    shape: dict[str, Any],
    sequences: int,
    length: int,
    shares: Sequence[float],
    dtype: str,
    executors: list[str],
    seed: int,
) -> dict[str, Any]:
    """One kind of work, for every baseline and executor, beside the dense model.

    Args:
        work: `prefill`, `decode` (8 tokens for each sequence after `length` cached ones), or
            `training`: forward and backward pass, without the optimizer's step.
        sequences, length: B and T.
        dtype: of the weights, or of autocast when training.
    """
    assert work in WORK
    training = work == "training"
    stored = torch.float32 if training else getattr(torch, dtype)
    counts = loop_counts(shares, sequences * (1 if work == "decode" else length), seed)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, shape["vocab_size"], (sequences, length), generator=generator)
    ours = ["straightforward", *executors]
    run: dict[str, Callable[[], list[Tensor]]] = {}
    for kind in [*BASELINES, *ours]:
        net = build(kind, shape, counts, device, stored, seed).train(training)
        if work == "training":
            run[kind] = partial(train_step, net, ids.to(device), dtype == "bfloat16")
        elif work == "decode":
            run[kind] = Decoding(net, ids.to(device))
        else:
            run[kind] = partial(prefill, net, ids.to(device))
    results = {kind: as_vectors(run[kind]()) for kind in ours}
    errors = check_equal(results, "straightforward", MODEL_TOLERANCE[dtype])
    del results
    timings = measure(run, budget, waits_for(device))
    result = {
        "mean_loops": counts.double().mean().item(),
        "errors": errors,
        "seconds": timings.to_dict(),
        "ratios": {f"{kind}/dense": timings.ratio(kind, "dense")._asdict() for kind in run},
    }
    tokens = sequences * (Decoding.STEPS if work == "decode" else length)
    return result | _rates(timings, run, tokens)


def _rates(
    timings: Timings, run: dict[str, Callable[[], list[Tensor]]], tokens: int
) -> dict[str, Any]:
    """Tokens per second, FLOPs per token, and FLOPs per second as a share of the dense model's."""
    flops = {}
    for kind, step in run.items():
        with FlopCounter() as counter:
            step()
        flops[kind] = counter.total
    return {
        "tokens_per_second": {
            kind: tokens / row["median"] for kind, row in timings.to_dict().items()
        },
        "flops_per_token": {kind: total / tokens for kind, total in flops.items()},
        "rate_per_flop": {
            kind: timings.ratio("dense", kind, flops["dense"] / flops[kind])._asdict()
            for kind in run
        },
    }


@torch.inference_mode()
def prefill(net: nn.Module, ids_BT: Tensor) -> list[Tensor]:
    """Read the prompt and fill the cache; the last position's logits."""
    return [net(input_ids=ids_BT, use_cache=True, logits_to_keep=1).logits]


class Decoding:
    """Greedy decoding after a cached prompt, the same stretch at each call."""

    STEPS = 8

    def __init__(self, net: nn.Module, ids_BT: Tensor) -> None:
        self.net, self.ids_BT, self.cache = net, ids_BT, DynamicCache()
        with torch.inference_mode():
            net(input_ids=ids_BT, past_key_values=self.cache, use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def __call__(self) -> list[Tensor]:
        """The logits of the first step; later ones depend on which token won."""
        token_B1, first = self.ids_BT[:, -1:], None
        for _ in range(self.STEPS):
            logits = self.net(
                input_ids=token_B1, past_key_values=self.cache, use_cache=True, logits_to_keep=1
            ).logits
            first = logits if first is None else first
            token_B1 = logits[:, -1].argmax(-1, keepdim=True)
        self.cache.crop(self.ids_BT.shape[1])
        assert first is not None
        return [first]


def train_step(net: nn.Module, ids_BT: Tensor, bf16: bool) -> list[Tensor]:
    """Forward and backward pass; the loss, and all gradients.

    Gradients are dropped afterwards, as `zero_grad` does between steps.
    """
    cast = torch.autocast(ids_BT.device.type, torch.bfloat16) if bf16 else nullcontext()
    with cast:
        loss = net(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss
    loss.backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    net.zero_grad(set_to_none=True)
    return [loss.detach(), *gradients]


def as_vectors(tensors: list[Tensor]) -> list[Tensor]:
    """The first result, and all others (gradients) as one vector."""
    first, *rest = tensors
    return [first, torch.cat([tensor.flatten() for tensor in rest])] if rest else [first]
