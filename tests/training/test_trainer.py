"""What the Trainer is told: who decays, and what the processes share."""

from versatileffn.data.packed import PackedDataset
from versatileffn.ffn.config import Versatile
from versatileffn.models.family import model_class
from versatileffn.training.architecture import Architecture, architecture_config
from versatileffn.training.arguments import training_arguments
from versatileffn.training.batches import plan_batches
from versatileffn.training.trainer import ReuseTrainer

ARCHITECTURE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 64,
    "attention_bias": True,
}


def test_norms_biases_and_gains_do_not_decay_and_embeddings_do(make_config, tmp_path):
    config = make_config()
    data = PackedDataset(config.data.tokens, "train", 32)
    plan = plan_batches(config, len(data), 1)
    made = architecture_config(Architecture(**ARCHITECTURE), Versatile(reuse_gains="learned"))
    model = model_class(made)(made)
    args = training_arguments(config, plan, tmp_path)
    trainer = ReuseTrainer(model, args, plan, data, data, 256)
    decays, spared = trainer.create_optimizer().param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared_names = {names[id(p)] for p in spared["params"]}
    layer = "model.layers.0."
    attention = {f"{layer}self_attn.{x}_proj.bias" for x in "qkvo"}
    assert spared_names == attention | {
        "model.norm.weight",
        f"{layer}input_layernorm.weight",
        f"{layer}post_attention_layernorm.weight",
        f"{layer}gains.width_gain",
        f"{layer}gains.loop_gains",
    }
    assert (decays["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    decayed_names = {names[id(p)] for p in decays["params"]}
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= decayed_names
    assert decayed_names | spared_names == set(names.values())
    assert (decays["betas"], decays["eps"]) == ((0.9, 0.95), 1e-8)
