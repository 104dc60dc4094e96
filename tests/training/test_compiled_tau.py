"""τ moves in every step; a compiled model takes it as a number, and isn't compiled for each."""

import torch
from torch._dynamo.utils import counters
from transformers import LlamaConfig

from training.conftest import TINY
from versatileffn.ffn.config import Versatile
from versatileffn.models.family import model_class, reuse_config


def test_a_moving_tau_compiles_nothing_more():
    sizes = TINY | {"num_hidden_layers": 1}
    config = reuse_config(LlamaConfig(vocab_size=64, **sizes), Versatile(num_experts=4))
    model = model_class(config)(config).train()
    torch.compiler.reset()
    counters.clear()
    compiled = torch.compile(model, backend="eager")
    ids, graphs = torch.arange(16).view(2, 8), []
    for step in range(6):
        model.set_tau(5.0 - 0.7 * step)
        compiled(input_ids=ids, labels=ids).loss.backward()
        graphs.append(counters["stats"]["unique_graphs"])
    torch.compiler.reset()
    # The second value shows the compiler that it moves.
    assert graphs[0] >= 1
    assert graphs[1] <= 2 * graphs[0]
    assert graphs[1:] == [graphs[1]] * 5
