"""What a family's layer is, where it differs from a Llama's."""

import peft
import pytest
import torch

import versatileffn as vf
from support.families import tiny_config, tiny_dense
from support.models import make_ids, make_model
from versatileffn.errors import ConfigError
from versatileffn.models.family import model_class, reuse_config


def test_layers_with_experts_of_their_own_are_refused():
    config = reuse_config(tiny_config("llama4_text", moe_layers=[1]), vf.Versatile())
    with pytest.raises(ConfigError, match=r"a Llama4TextMoe .* has no gate_proj"):
        model_class(config)(config)


@pytest.mark.parametrize("variant", [vf.Dense(), vf.Versatile(reuse_gains="learned")])
def test_a_dropout_behind_the_ffn_falls_on_its_output(variant):
    """As the family's own does: the same neurons of the residual stream, by the same noise."""
    dense = tiny_dense("starcoder2", residual_dropout=0.5, attention_dropout=0.0)
    config = reuse_config(dense.config, variant)
    model, ids = model_class(config)(config), make_ids(2, 9)
    model.load_state_dict(dense.state_dict(), strict=False)
    model.train()
    dense.train()
    for layer in model.reuse_layers():
        layer.controller.eval()  # its noise would come in between
    states = []
    for each in (model, dense):
        torch.manual_seed(3)
        states.append(each(ids, labels=ids, use_cache=False, output_hidden_states=True))
    assert torch.equal(states[0].hidden_states[-1], states[1].hidden_states[-1])
    assert not torch.allclose(model.eval()(ids).logits, states[0].logits)


def test_the_residual_scale_is_the_familys():
    """Granite multiplies what is added; loops read the scaled stream."""
    dense = tiny_dense("granite", residual_multiplier=0.7)
    config = reuse_config(dense.config, vf.KLoop(num_loops=2))
    model, states = model_class(config)(config).eval(), {}
    layer = model.model.layers[0]
    layer.self_attn.register_forward_hook(lambda _m, _i, out: states.update(attended=out[0]))
    layer.register_forward_hook(lambda _m, inputs, out: states.update(into=inputs[0], out=out))
    with torch.no_grad():
        model(make_ids(2, 9))
        hidden = states["into"] + 0.7 * states["attended"]
        for _ in range(2):
            hidden = hidden + 0.7 * layer.mlp(layer.post_attention_layernorm(hidden))
    torch.testing.assert_close(states["out"], hidden)


@pytest.mark.parametrize(
    ("family", "settings"), [("cohere2", {}), ("stablelm", {"use_parallel_residual": True})]
)
def test_beside_attention_the_controller_reads_the_stream_before_the_layer(family, settings):
    dense, ids = tiny_dense(family, **settings), make_ids(2, 9)
    config = reuse_config(dense.config, vf.Versatile(reuse_gains="learned"))
    model, read = model_class(config)(config).eval(), {}
    model.load_state_dict(dense.state_dict(), strict=False)
    layer = model.model.layers[1]
    layer.register_forward_pre_hook(lambda _m, inputs: read.update(stream=inputs[0]))
    layer.controller.register_forward_pre_hook(lambda _m, inputs: read.update(seen=inputs[0]))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, dense(ids).logits)
    assert torch.equal(read["seen"], read["stream"])


def test_parts_are_found_behind_a_wrapper():
    """PEFT's copy that is trained, and torch.compile's, stand where the mlp stood."""
    model, ids = make_model(reuse_gains="learned").eval(), make_ids(2, 9)
    with torch.no_grad():
        logits = model(ids).logits
        tuned = peft.get_peft_model(
            model, peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["mlp"])
        )
        assert torch.equal(tuned(ids).logits, logits)
        tuned.model.model.layers[0].mlp.modules_to_save["default"].down_proj.weight.zero_()
        assert not torch.allclose(tuned(ids).logits, logits)
        model = make_model(reuse_gains="learned").eval()
        model.model.layers[0].mlp = torch.compile(model.model.layers[0].mlp)
        assert torch.equal(model(ids).logits, logits)
