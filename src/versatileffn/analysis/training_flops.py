"""FLOPs of training: forward and backward of one token, everything in the model together.

Matrix products only, 2 FLOPs per multiply-add, as everywhere here; what is multiplied again to save
memory isn't counted. Attention is causal, so that a token meets half of its window on average;
where a family lets it see less, this is too much.

Legend: D hidden_size, T tokens of a window, V vocabulary, L max_loops.
"""

import re
from typing import Any

from versatileffn.analysis.flops import ModelCost, model_cost
from versatileffn.models.weights import skeleton

ATTENTION = re.compile(r"\.layers\.\d+\.\w*att\w*\.")
"""In the names of attention's own parameters."""


def training_flops(config: Any, seq_len: int, mean_loops: float | None = None) -> float:
    """FLOPs that training on one token takes.

    Args:
        config: of a model of any family, dense or reused.
        seq_len: T.
        mean_loops: of the tokens, where they choose, 1 to L; None: L.
    """
    named = skeleton(config).named_parameters()
    maps = sum(p.numel() for name, p in named if p.dim() > 1 and ATTENTION.search(name))
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    scores = config.num_hidden_layers * 2 * seq_len * config.num_attention_heads * head_dim
    head = 2 * config.vocab_size * config.hidden_size
    return 3 * (2 * maps + scores + head) + _ffn(model_cost(config), mean_loops)


def _ffn(found: ModelCost, mean_loops: float | None) -> float:
    """Of all FFNs: L loops forward, and back those that count."""
    loops = found.ffn.loops
    taken = mean_loops if found.needs_loops and mean_loops is not None else loops
    forward, back = (found.once + found.again * (max(n, 1) - 1) for n in (loops, taken))
    real = found.experts if found.ffn.variant == "moe" else 0
    return forward + 2 * back + 3 * (real + found.controller) + 3 * found.width_down
