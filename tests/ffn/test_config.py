import pytest

from versatileffn.errors import ConfigError
from versatileffn.ffn.config import FFNConfig
from versatileffn.ffn.controller import ReuseController
from versatileffn.ffn.dense import DenseFFN
from versatileffn.ffn.experts import ExpertSlices
from versatileffn.ffn.kloop import KLoopFFN
from versatileffn.ffn.moe import MoEFFN
from versatileffn.ffn.versatile import VersatileFFN
from versatileffn.models.llama import VersatileLlamaConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "wide"}, "variant='wide' is unknown: choose one of"),
        ({"fusion": "sum"}, "fusion='sum' is unknown"),
        ({"loop_mix": "gumbel"}, "loop_mix='gumbel' is unknown"),
        ({"reuse_gains": True}, "reuse_gains=True is unknown"),
        ({"execution": "fast"}, "execution='fast' is unknown"),
        ({"top_k": 3, "num_experts": 2}, "top_k=3 exceeds num_experts=2.*lower top_k"),
        ({"top_k": 0}, "top_k=0 must be a whole number from 1"),
        ({"num_experts": 2.5}, "num_experts=2.5 must be a whole number"),
        ({"max_loops": 0}, "max_loops=0 must be"),
        ({"num_loops": -1}, "num_loops=-1 must be"),
        ({"d_expert": 0}, "d_expert=0 must be"),
        ({"d_expert": 1.5}, "d_expert=1.5 must be a whole number"),
        ({"top_k": True}, "top_k=True must be a whole number"),
        ({"max_loops": 10**14}, "max_loops=1.*must be a whole number from 1 to"),
        ({"tau": 0.0}, "tau=0.0 must be positive"),
        ({"tau": float("nan")}, "tau=nan must be a finite number"),
        ({"tau": "2"}, "tau='2' must be a finite number"),
        ({"router_aux_loss_coef": float("inf")}, "must be a finite number"),
        ({"normed_controller": "false"}, "normed_controller='false' must be True or False"),
        ({"router_aux_loss_coef": -1e-5}, "is negative"),
    ],
    ids=str,
)
def test_bad_values_name_cause_and_remedy(fields, message):
    with pytest.raises(ConfigError, match=message):
        FFNConfig(**fields)


def test_experts_must_fit_and_exist():
    with pytest.raises(ConfigError, match=r"8·5 = 40 exceeds d_hidden=32.*at most 4"):
        VersatileFFN(16, 32, d_expert=5)
    with pytest.raises(ConfigError, match="leaves no neuron for an expert"):
        VersatileFFN(16, 4)


def test_unknown_field_is_a_config_error():
    with pytest.raises(ConfigError, match="num_expert"):
        VersatileFFN(16, 32, num_expert=4)


def test_a_layer_of_another_variant():
    with pytest.raises(ConfigError, match="variant='moe'"):
        VersatileFFN(16, 32, variant="moe")


def test_unknown_activation():
    with pytest.raises(ConfigError, match="activation='swish2' is unknown"):
        VersatileFFN(16, 32, activation="swish2")


@pytest.mark.parametrize("shape", [(0, 32), (16, 0), (16.0, 32)], ids=str)
def test_bad_shape(shape):
    with pytest.raises(ConfigError, match="must be a whole number"):
        VersatileFFN(*shape)


def test_k_loop_needs_a_loop():
    with pytest.raises(ConfigError, match="num_loops=0"):
        KLoopFFN(16, 32, 0)


def test_unused_neurons_are_named():
    with pytest.warns(UserWarning, match="2 of 32 hidden neurons belong to no expert"):
        VersatileFFN(16, 32, num_experts=3)


def test_a_config_of_another_type():
    with pytest.raises(ConfigError, match="must be an FFNConfig"):
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
        (lambda: DenseFFN(16, 32, gated=None), "gated=None must be True or False"),
        (lambda: DenseFFN(True, 32), "d_model=True must be a whole number"),
        (lambda: DenseFFN(16, 10**9), "d_hidden=1000000000 must be a whole number"),
        (lambda: KLoopFFN(16, 32, "2"), "num_loops='2' must be a whole number"),
        (lambda: KLoopFFN(16, 32, 2.5), "num_loops=2.5 must be a whole number"),
        (lambda: KLoopFFN(16, 32, True), "num_loops=True must be a whole number"),
        (lambda: KLoopFFN(16, 32, 2, reuse_gains="lerned"), "reuse_gains='lerned' is unknown"),
        (lambda: KLoopFFN(16, 32, 2, gated="no"), "gated='no'"),
        (lambda: MoEFFN(16, 32, {"num_experts": 4}), "must be an FFNConfig with variant='moe'"),
        (lambda: MoEFFN(16, 32, FFNConfig()), "must be an FFNConfig with variant='moe'"),
        (lambda: MoEFFN(16, 32, FFNConfig(variant="moe"), gated="no"), "gated='no'"),
        (lambda: ReuseController(16, 32, None), "config=None must be an FFNConfig"),
        (lambda: ExpertSlices(2.0, 4, 32), "num_experts=2.0 must be a whole number"),
        (lambda: ExpertSlices(2, 0, 32), "d_expert=0 must be a whole number"),
        (lambda: FFNConfig(tau=10**400), "tau=1.* must be a finite number"),
        (lambda: VersatileLlamaConfig(output_router_logits="no"), "output_router_logits='no'"),
    ],
)
def test_values_of_the_wrong_type_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
