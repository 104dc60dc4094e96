import pytest

from support.models import make_config
from versatileffn.errors import ConfigError
from versatileffn.ffn.base_config import VARIANTS, FFNConfig
from versatileffn.ffn.config import Dense, KLoop, MoE, Versatile
from versatileffn.ffn.experts import ExpertSlices
from versatileffn.layer import VersatileFFN


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "wide"}, "variant='wide' is unknown: choose one of"),
        ({"fusion": "sum"}, "fusion='sum' is unknown"),
        ({"loop_mix": "gumbel"}, "loop_mix='gumbel' is unknown"),
        ({"reuse_gains": True}, "reuse_gains=True is unknown"),
        ({"controller": ""}, "controller='' must be a name"),
        ({"top_k": 3, "num_experts": 2}, "top_k=3 exceeds num_experts=2.*lower top_k"),
        ({"top_k": 0}, "top_k=0 must be a whole number from 1"),
        ({"num_experts": 2.5}, "num_experts=2.5 must be a whole number"),
        ({"max_loops": 0}, "max_loops=0 must be"),
        ({"variant": "k-loop", "num_loops": -1}, "num_loops=-1 must be"),
        ({"variant": "k-loop", "loop_rank": 0}, "loop_rank=0 must be"),
        ({"d_expert": 0}, "d_expert=0 must be"),
        ({"d_expert": 1.5}, "d_expert=1.5 must be a whole number"),
        ({"top_k": True}, "top_k=True must be a whole number"),
        ({"max_loops": 10**14}, "max_loops=1.*must be a whole number from 1 to"),
        ({"max_loops": 2000}, "max_loops=2,000 must be at most 1,024"),
        ({"router_aux_loss_coef": float("inf")}, "must be a finite number"),
        ({"router_aux_loss_coef": 10**400}, "must be a finite number"),
        ({"normed_controller": "false"}, "normed_controller='false' must be True or False"),
        ({"router_aux_loss_coef": -1e-5}, "is negative"),
        ({"variant": "moe", "router_aux_loss_coef": -1e-5}, "is negative"),
        ({"variant": "moe", "top_k": 9}, "top_k=9 exceeds num_experts=8"),
        ({"loop_scale": 0.0}, "loop_scale=0.0 must be positive"),
        ({"loop_scale": 0.5, "reuse_gains": "learned"}, "gain_init says where learned gains start"),
        ({"loop_scale": 0.5, "fusion": "width"}, "fusion=.width. runs none: leave it out"),
        ({"router_bias_rate": 1e-3}, "set router_aux_loss_coef=0"),
        ({"router_bias_rate": -1.0}, "router_bias_rate=-1.0 is negative"),
        ({"router_bias_rate": 1e-3, "fusion": "depth"}, "no effect where no experts are chosen"),
    ],
    ids=str,
)
def test_bad_values_name_cause_and_remedy(fields, message):
    with pytest.raises(ConfigError, match=message):
        FFNConfig.from_dict(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_loops": 2}, "num_loops is a knob of k-loop, not of versatile"),
        ({"variant": "dense", "top_k": 2}, "top_k is a knob of moe and versatile, not of dense"),
        ({"variant": "k-loop", "max_loops": 2}, "max_loops is a knob of versatile"),
        ({"execution": "packed"}, "'execution'"),
        ({"tau": 1.0}, "'tau'"),
        ({"variant": "moe", "num_expert": 4}, "num_expert"),
    ],
    ids=str,
)
def test_a_knob_of_another_variant_or_of_nobody_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        FFNConfig.from_dict(fields)


@pytest.mark.parametrize("config", [Versatile(max_loops=2), KLoop(3), MoE(top_k=1), Dense()])
def test_a_record_comes_back_from_plain_data(config):
    assert FFNConfig.from_dict(config.to_dict()) == config
    assert VARIANTS[config.variant] is type(config)


def test_experts_must_fit_and_exist():
    with pytest.raises(ConfigError, match=r"8·5 = 40 exceeds d_hidden=32.*at most 4"):
        VersatileFFN(16, 32, d_expert=5)
    with pytest.raises(ConfigError, match="leaves no neuron for an expert"):
        VersatileFFN(16, 4)


def test_unknown_field_is_a_config_error():
    with pytest.raises(ConfigError, match="num_expert"):
        VersatileFFN(16, 32, num_expert=4)


def test_unknown_activation():
    with pytest.raises(ConfigError, match="activation='swish2' is unknown"):
        VersatileFFN(16, 32, activation="swish2")


@pytest.mark.parametrize("shape", [(0, 32), (16, 0), (16.0, 32)], ids=str)
def test_bad_shape(shape):
    with pytest.raises(ConfigError, match="must be a whole number"):
        VersatileFFN(*shape)


def test_unused_neurons_are_named():
    with pytest.warns(UserWarning, match="2 of 32 hidden neurons belong to no expert"):
        VersatileFFN(16, 32, num_experts=3)


def test_a_config_of_another_type():
    with pytest.raises(ConfigError, match="must be a Versatile, KLoop, MoE or Dense"):
        VersatileFFN(16, 32, {"top_k": 1})


@pytest.mark.parametrize("eps", [float("nan"), -1.0, "a"], ids=str)
def test_bad_epsilon(eps):
    with pytest.raises(ConfigError, match="norm_eps="):
        VersatileFFN(16, 32, norm_eps=eps)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VersatileFFN(16, 32, gated="no"), "gated='no' must be True or False"),
        (lambda: VersatileFFN(16, 32, bias=1), "bias=1 must be True or False"),
        (lambda: VersatileFFN(16, 32, Dense(), gated=None), "gated=None must be True or False"),
        (lambda: VersatileFFN(True, 32, Dense()), "d_model=True must be a whole number"),
        (lambda: VersatileFFN(16, 10**9, Dense()), "d_hidden=1000000000 must be a whole number"),
        (lambda: KLoop("2"), "num_loops='2' must be a whole number"),
        (lambda: KLoop(2.5), "num_loops=2.5 must be a whole number"),
        (lambda: KLoop(2, reuse_gains="lerned"), "reuse_gains='lerned' is unknown"),
        (lambda: ExpertSlices(2.0, 4, 32), "num_experts=2.0 must be a whole number"),
        (lambda: ExpertSlices(2, 0, 32), "d_expert=0 must be a whole number"),
        (lambda: make_config(output_router_logits="no"), "output_router_logits='no'"),
    ],
)
def test_values_of_the_wrong_type_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
