"""A norm that is known by its name is that norm, to the bit, and its gradient is autograd's."""

import importlib
import re

import pytest
import torch

from support.layers import make_hidden, relative_error
from versatileffn.execution.norms import ROUNDS_FIRST, RMSNorm


def norm_of(name):
    """The class from the family of Transformers that has it."""
    family = re.sub("RMSNorm$", "", name).lower()
    return getattr(importlib.import_module(f"transformers.models.{family}.modeling_{family}"), name)


@pytest.mark.parametrize("name", sorted(ROUNDS_FIRST))
def test_transformers_norms_are_what_their_names_say(name):
    module = norm_of(name)(16, eps=1e-3)
    with torch.no_grad():
        module.weight.copy_(1 + 0.3 * make_hidden(16, seed=4))
    x = 3 * make_hidden(9, 16, dtype=torch.bfloat16)
    known = RMSNorm.of(module.to(torch.bfloat16))
    assert torch.equal(known(x), module(x))

    module, x = module.double(), make_hidden(9, 16).requires_grad_()
    value, backward = RMSNorm.of(module).with_backward(x.detach())
    output, seen = module(x), make_hidden(9, 16, seed=5)
    expected = torch.autograd.grad((output * seen).sum(), [x, module.weight])
    d_x, (d_weight,) = backward(seen)
    # in float64, but for a norm that computes in float32 whatever it is given
    for ours, truth in zip((value, d_x, d_weight), (output, *expected), strict=True):
        assert relative_error(ours, truth) < 1e-5


@pytest.mark.parametrize(("family", "name"), [("gemma", "GemmaRMSNorm"), ("olmo2", "Olmo2RMSNorm")])
def test_other_norms_are_not_taken_for_it(family, name):
    lib = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    assert RMSNorm.of(getattr(lib, name)(16)) is None


def test_a_hooked_norm_is_called():
    module = torch.nn.RMSNorm(16, eps=1e-6)
    assert RMSNorm.of(module) is not None
    module.register_forward_hook(lambda *_: None)
    assert RMSNorm.of(module) is None
