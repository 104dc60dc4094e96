"""Sizes are compared with the machine's before anything is allocated."""

import pytest

from versatileffn import memory
from versatileffn.errors import ResourceError
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.models.weights import parameter_count
from versatileffn.training.architecture import Architecture, architecture_config
from versatileffn.training.batches import plan_batches
from versatileffn.training.init import new_model
from versatileffn.training.run import train
from versatileffn.training.sizes import FLOAT, check_sizes

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "vocab_size": 64,
}
MILLION = 10**6
LARGE_BATCH = {"run__per_device_train_batch_size": 2**13, "run__tokens_per_batch": 2**18}
"""Which a dense model fits into the memory of the test with."""


@pytest.mark.parametrize("variant", [None, "dense", "k-loop", "moe", "versatile"])
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_counted_without_building(variant, tied):
    ffn = None if variant is None else FFNConfig.from_dict({"variant": variant})
    architecture = Architecture(**TINY, tie_word_embeddings=tied)
    config = architecture_config(architecture, ffn)
    assert parameter_count(config) == new_model(config).num_parameters()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("change", "message"), [
    ({"model__architecture": {**TINY, "num_hidden_layers": 1024, "vocab_size": MILLION,
                              "hidden_size": 1024}},
     r"parameters in 1,024 layers.* needs .*iB of memory, .*iB are available: choose smaller"),
    ({"model__architecture": {**TINY, "intermediate_size": MILLION, "hidden_size": MILLION}},
     "needs .* available"),
    ({"model__ffn": {"max_loops": 1024}, **LARGE_BATCH},
     "trained on 262,144 tokens at once .* needs .* available"),
    ({"model__ffn": {"variant": "k-loop", "num_loops": 1024}, **LARGE_BATCH}, "needs .* available"),
    ({"run__tokens_per_batch": 2**40}, "tokens_per_batch=.* needs .* available: lower it"),
    ({"run__dataloader_num_workers": MILLION}, "dataloader_num_workers=.* needs .* available"),
    ({"run__per_device_train_batch_size": 2**29, "run__tokens_per_batch": 2**34},
     "needs .* available"),
], ids=["layers", "neurons", "loops", "k-loops", "tokens", "workers", "windows"])  # fmt: skip
def test_too_much_of_anything_is_refused_at_once(
    make_config, tmp_path, monkeypatch, change, message
):
    monkeypatch.setattr(memory, "available_memory", lambda device: 2 * 2**30)
    with pytest.raises(ResourceError, match=message) as caught:
        train(make_config(**change))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_every_process_of_a_machine_is_counted(make_config, monkeypatch):
    config = make_config(run__per_device_train_batch_size=2)
    architecture = architecture_config(config.model.architecture, None, 64)
    plan = plan_batches(config, 600, 4)
    room = 3 * FLOAT * parameter_count(architecture)
    monkeypatch.setattr(memory, "total_memory", lambda: room)
    assert check_sizes(architecture, config, plan) > 0  # each on a machine of its own
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ResourceError, match=r"in each of 4 processes .* or start fewer$"):
        check_sizes(architecture, config, plan)


def test_layers_that_differ_are_counted_each():
    """In every second layer of this one there are experts, of the family's own."""
    architecture = Architecture(
        **TINY, family="llama4_text", more={"interleave_moe_layer_step": 2, "num_local_experts": 3}
    )
    config = architecture_config(architecture, None)
    assert parameter_count(config) == new_model(config).num_parameters()


def test_a_large_batch_alone_fits(make_config, monkeypatch):
    """The wrong control: what is refused above isn't refused for its batch."""
    monkeypatch.setattr(memory, "available_memory", lambda device: 2 * 2**30)
    config = make_config(**LARGE_BATCH)
    architecture = architecture_config(config.model.architecture, None, 64)
    assert check_sizes(architecture, config, plan_batches(config, 600, 1)) > 0
