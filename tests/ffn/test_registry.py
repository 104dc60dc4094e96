"""Controllers have names, and whoever decides, gains stay the layer's."""

import pytest
import torch
from torch import nn

from versatileffn.errors import ConfigError
from versatileffn.ffn.config import Versatile
from versatileffn.ffn.controller import ConstantController, LinearController
from versatileffn.ffn.registry import CONTROLLERS, make_controller, register_controller
from versatileffn.layer import VersatileFFN


@pytest.fixture
def own_controller():
    """Someone's router: as many loops as there are positive hidden numbers, at most L."""

    @register_controller("positive")
    class Positive(ConstantController):
        def __init__(self, d_model, d_hidden, config):
            super().__init__(config.max_loops)
            self.weight = nn.Parameter(torch.ones(d_model))

        def forward(self, hidden):
            counts = ((hidden * self.weight) > 0).sum(-1).clamp(1, self.num_loops)
            return super().forward(hidden).with_loops(counts)

    yield Positive
    del CONTROLLERS["positive"]


def test_a_name_makes_its_controller(own_controller):
    layer = VersatileFFN(8, 32, controller="positive", fusion="depth")
    assert type(layer.controller) is own_controller
    hidden = torch.tensor([[1.0] * 2 + [-1.0] * 6])
    assert layer(hidden).plan.loop_count.tolist() == [2]


def test_an_unknown_name_says_what_to_import():
    with pytest.raises(ConfigError, match=r"known: .*'linear'.*'token-choice'.*import the module"):
        make_controller(8, 32, Versatile(controller="mine"))


def test_a_name_is_given_once(own_controller):
    register_controller("positive")(own_controller)  # its module imported again
    with pytest.raises(ConfigError, match="'linear' is there already"):
        register_controller("linear")(own_controller)


@pytest.mark.parametrize("controller", ["linear", "token-choice", "positive"])
def test_the_start_is_exact_whoever_decides(own_controller, controller):
    torch.manual_seed(0)
    fusion = "difficulty" if controller == "linear" else "depth"
    layer = VersatileFFN(16, 32, controller=controller, fusion=fusion, reuse_gains="learned")
    hidden = torch.randn(5, 16)
    dense = hidden + layer.mlp(layer.norm(hidden))
    torch.testing.assert_close(layer(hidden).hidden, dense)
    layer.execution = "masked"  # packed products may round a row by how many there are
    assert torch.equal(layer(hidden).hidden, dense)
    with torch.no_grad():
        layer.gains.loop_gains.fill_(0.5)
    assert not torch.allclose(layer(hidden).hidden, dense)


def test_controllers_hold_no_gains():
    layer = VersatileFFN(16, 32, reuse_gains="learned")
    assert isinstance(layer.controller, LinearController)
    assert not [name for name, _ in layer.controller.named_parameters() if "gain" in name]
    assert {name for name, _ in layer.gains.named_parameters()} == {"loop_gains", "width_gain"}
