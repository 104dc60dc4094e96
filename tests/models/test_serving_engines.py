"""What vLLM's Transformers backend asks of a model, done to ours as it would do it. vLLM isn't run.

It builds the base model without weights, puts an attention function and linear maps of its own into
it, names the weights as the checkpoint does, and runs one row of tokens without a cache.
"""

import inspect

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AutoModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from support.families import tiny_config
from support.models import make_ids
from versatileffn.ffn.config import Versatile
from versatileffn.models.family import model_class, reuse_config

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Fields by which it takes a model for a mixture of experts."""


class Replicated(nn.Module):
    """Any linear map once vLLM has replaced it: no `nn.Linear`, in the dtype of the model."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x):
        return nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias)


@pytest.fixture
def config(model_type):
    return reuse_config(tiny_config(model_type), Versatile(reuse_gains="learned", gain_init=0.4))


def test_its_requirements_are_met(config):
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    assert model.is_backend_compatible()
    assert not [name for name in EXPERTS if hasattr(config, name)]
    assert all(getattr(module, "is_causal", True) for module in model.modules())
    layer = model.get_decoder().layers[0]
    family = layer.family
    assert not [name for name in model.tp_plan if f".{family.mlp}." in name]
    source = inspect.getsource(inspect.unwrap(type(getattr(layer, family.mlp)).forward))
    assert not [name for name in (*family.proj, family.act, family.down) if name in source]


def test_it_runs_with_attention_and_linears_of_another(config):
    heard = []

    def attend(module, query, key, value, mask, attention_instances=None, **kwargs):
        heard.append(attention_instances)
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    if hasattr(config, "attn_logit_softcapping"):
        config.attn_logit_softcapping = None  # which sdpa left out, and refuses from 5.23 on
    torch.manual_seed(0)
    model = model_class(config)(config).eval().base_model
    model.set_execution("masked")
    ids, positions = make_ids(1, 9), torch.arange(9)[None]
    with torch.no_grad():
        expected = model(ids, position_ids=positions, use_cache=False).last_hidden_state
        AttentionInterface.register("of-another", attend)
        model.config._attn_implementation = "of-another"
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, Replicated(child))
        found = model(
            input_ids=ids, inputs_embeds=None, use_cache=False, position_ids=positions,
            attention_instances="its own", return_dict=False,
        )[0]  # fmt: skip
    assert heard == ["its own"] * 2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
