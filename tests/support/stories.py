"""A small text, a tokenizer of its own, and readings of it whose numbers are known."""

from typing import Any

import torch

from versatileffn.analysis.readings import LayerReading, Reading
from versatileffn.data.tokenizers import train_bpe

TEXT = (
    "The river ran past the old mill, and the miller counted his sacks.\n\n"
    "Nobody in the valley remembered a drier summer, nor a slower river: 3 °C.\n"
)


def make_tokenizer() -> Any:
    return train_bpe([TEXT], 300)


def make_reading(
    ids: list[int], seed: int = 0, layers: int = 2, loops_decided: bool = True
) -> Reading:
    """Random decisions about given tokens, L = 4, K = 2 of 8 experts; or those of real experts."""
    noise = torch.Generator().manual_seed(seed)
    count = len(ids)
    nats = 5 * torch.rand(count, generator=noise)
    nats[0] = torch.nan
    made = []
    for _ in range(layers):
        loops = torch.randint(1, 5, (count,), generator=noise, dtype=torch.uint8)
        experts = torch.randint(0, 8, (count, 2), generator=noise).to(torch.int16)
        if loops_decided:
            made.append(LayerReading(loops, 1 - loops.float() / 4, experts, 4, 8))
        else:
            made.append(LayerReading(None, None, experts, 1, 8))
    return Reading(torch.tensor(ids), nats, tuple(made))
