"""Every process holds, of a model that is filled piece by piece, what one that is built whole has.

Its arguments are checkpoints to start from.
"""

import sys

import torch
import torch.distributed as dist

from training.conftest import TINY
from versatileffn.training.config import ModelSection
from versatileffn.training.init import build_model, model_config
from versatileffn.training.parallel import ParallelSection
from versatileffn.training.piecewise import Unfilled, can_fill
from versatileffn.training.sharding import shard, whole

LOW_RANK = {
    "variant": "versatile", "num_experts": 4, "reuse_gains": "learned", "gain_init": 0.1,
    "loop_rank": 2,
}  # fmt: skip
EXPERTS = {
    "variant": "moe", "num_experts": 4, "router_bias_rate": 0.01, "router_aux_loss_coef": 0.0
}  # fmt: skip


def check(section: ModelSection) -> None:
    """Weights and buffers, bit for bit, in the same order."""
    config, cpu = model_config(section, 64, 63, 32), torch.device("cpu")
    expected = build_model(section, config, seed=7)
    assert can_fill(section, config)
    unfilled = Unfilled(section, config, seed=7)
    model = unfilled.model
    assert all(weight.is_meta for weight in model.parameters())
    shard(model, ParallelSection(strategy="fsdp2"), cpu, dist.get_world_size())
    unfilled.fill(cpu)
    pairs = zip(expected.state_dict().items(), model.state_dict().items(), strict=True)
    for (name, ours), (other, theirs) in pairs:
        assert name == other
        assert torch.equal(ours, whole(theirs)), name
    pairs = zip(expected.named_buffers(), model.named_buffers(), strict=True)
    for (name, ours), (other, theirs) in pairs:
        assert name == other
        assert torch.equal(ours, theirs), name
    shared = model.lm_head.weight is model.get_input_embeddings().weight
    assert shared == model.config.tie_word_embeddings


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for ffn, tied in ((LOW_RANK, True), (EXPERTS, False), (None, False)):
        sizes = TINY | {"tie_word_embeddings": tied, "attention_bias": True}
        check(ModelSection.model_validate({"architecture": sizes, "ffn": ffn}))
    for source in sys.argv[1:]:
        check(ModelSection.model_validate({"init_from": source}))
    dist.destroy_process_group()
