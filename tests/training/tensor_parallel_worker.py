"""Two processes divide attention and head of a model, as Transformers does; the FFN stays whole."""

import sys

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM
from transformers.distributed.configuration_utils import DistributedConfig

import versatileffn as vf


def gradients(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of every weight, in training mode without noise, by which processes would differ."""
    model.train()
    model.set_reuse_noise(False)
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


def check(path: str) -> None:
    """The same logits and gradients as one process; a plan that divides the FFN is refused."""
    ids = torch.arange(40).view(2, 20)
    whole = AutoModelForCausalLM.from_pretrained(path)
    divided = AutoModelForCausalLM.from_pretrained(
        path, distributed_config=DistributedConfig(tp_size=2)
    )
    torch.testing.assert_close(divided(input_ids=ids).logits, whole(input_ids=ids).logits)
    expected, found = gradients(whole, ids), gradients(divided, ids)
    alike = [name for name in expected if expected[name].shape == found[name].shape]
    assert len(alike) < len(expected), "nothing was divided"
    assert any(".controller." in name for name in alike)
    for name in alike:
        torch.testing.assert_close(found[name], expected[name])
    plan = {"model.layers.*.mlp.up_proj": "colwise", "model.layers.*.mlp.down_proj": "rowwise"}
    try:
        AutoModelForCausalLM.from_pretrained(
            path, distributed_config=DistributedConfig(tp_size=2, tp_plan=plan)
        )
    except vf.errors.ConfigError as error:
        print(error, flush=True)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    check(sys.argv[1])
    dist.destroy_process_group()
