"""The compiled kernel for one loop: what it computes, when it is taken, and what without it."""

import shutil
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from execution.test_once import ONE, capped, truth, update
from support.layers import make_hidden, relative_error, view_of
from versatileffn.errors import ResourceError
from versatileffn.execution import native
from versatileffn.execution.select import execution_choices, forget_choices
from versatileffn.ffn.config import Versatile

WITH_EXPERTS = {
    name: config
    for name, config in ONE.items()
    if isinstance(config, Versatile)
    and config.uses_width
    and config.fusion != "depth"
    and (config.max_loops > 1 or config.fusion != "difficulty")
    and name not in ("gaps", "biased")
}
LIMITS = {torch.float32: 1e-6, torch.bfloat16: 2e-2}


@pytest.fixture(scope="module", autouse=True)
def built(tmp_path_factory):
    """The kernel, in a folder of its own."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        native.load.cache_clear()
        assert native.load() is None  # nothing is built unasked
        native.build()
        yield
    native.load.cache_clear()


@pytest.fixture(autouse=True)
def new_record():
    forget_choices()
    native.load.cache_clear()


def took_kernel():
    return any("compiled" in choice["reason"] for choice in execution_choices())


def made(name, dtype, form="swiglu", config=None):
    layer = capped(form, config or WITH_EXPERTS[name], dtype=dtype)
    layer.controller.float()
    if layer.gains is not None:
        layer.gains.float()
    return layer


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_it_is_the_paper_with_one_loop(name, dtype):
    layer, hidden = made(name, dtype), make_hidden(2, 9, 16, dtype=dtype)
    found = (hidden + update(layer, hidden)).float()
    assert took_kernel()
    expected = truth(layer.float(), hidden.flatten(0, 1).float()).view_as(hidden)
    assert relative_error(found, expected) <= LIMITS[dtype]


def test_the_cases_have_one_and_all_experts():
    """K = 1 has gates of its own; σ, λ = 1 and learned gains other sums."""
    assert {config.top_k for config in WITH_EXPERTS.values()} >= {1, 2}
    assert {config.fusion for config in WITH_EXPERTS.values()} >= {"difficulty", "average", "width"}
    assert {config.reuse_gains for config in WITH_EXPERTS.values()} == {"fixed", "learned"}


@pytest.mark.parametrize("wrong", ["top_k", "rest", "share", "router_ND"])
def test_a_wrong_weight_is_found(wrong, monkeypatch):
    """The control: another number of experts, share or router is far outside the tolerance."""
    layer, hidden = made("paper", torch.float32), make_hidden(7, 16)
    hidden = hidden.float()
    honest = native.compiled_one_loop

    def spoilt(*given):
        right = honest(*given)
        other = {"top_k": 1, "rest": 0.5, "share": 0.5, "router_ND": right.router_ND.flip(0)}
        return right._replace(**{wrong: other[wrong]})

    monkeypatch.setattr("versatileffn.execution.select.compiled_one_loop", spoilt)
    found = hidden + update(layer, hidden)
    assert relative_error(found, truth(layer, hidden)) > 1e-3


def gaps(layer):
    return made("", torch.float32, config=Versatile(num_experts=3, d_expert=5))


def biased(layer):
    config = Versatile(router_bias_rate=0.01, router_aux_loss_coef=0.0)
    return made("", torch.float32, config=config)


def half_router(layer):
    layer.controller.bfloat16()
    return layer


def adapter(layer):
    layer.controller.router = nn.Linear(16, 8, bias=False)
    return layer


def computed(layer):
    """What replaces a weight by what it computes, as pruning does, takes it from the parameters."""
    router = layer.controller.router
    weight = router.weight.detach() / 2
    del router.weight
    router.weight = weight
    return layer


@pytest.mark.parametrize("change", [gaps, biased, half_router, adapter, computed])
def test_what_it_does_not_know_takes_the_operators(change):
    layer, hidden = change(made("paper", torch.float32)), make_hidden(3, 16).float()
    update(layer, hidden)
    assert [choice["executor"] for choice in execution_choices()] == ["once"]
    assert not took_kernel()


def test_many_tokens_take_the_operators():
    layer = made("paper", torch.float32)
    few, many = make_hidden(native.MOST_TOKENS, 16), make_hidden(native.MOST_TOKENS + 1, 16)
    update(layer, many.float())
    assert not took_kernel()
    update(layer, few.float())
    assert took_kernel()


def test_views_and_slices_are_read_as_they_are():
    layer, wide = made("paper", torch.float32), make_hidden(5, 32).float()
    every_second = wide[:, ::2]
    torch.testing.assert_close(update(layer, every_second), update(layer, every_second.clone()))


def test_what_is_not_a_number_stays_in_its_token():
    layer, hidden = made("paper", torch.bfloat16), make_hidden(3, 16, dtype=torch.bfloat16)
    clean = update(layer, hidden)
    hidden[1] = torch.nan
    found = update(layer, hidden)
    assert took_kernel()
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], clean[[0, 2]])


def test_without_it_nothing_is_said_and_the_operators_compute(monkeypatch):
    layer, hidden = made("paper", torch.float32), make_hidden(3, 16).float()
    with_kernel = update(layer, hidden)
    forget_choices()
    monkeypatch.setattr(native, "load", lambda: None)
    torch.testing.assert_close(update(layer, hidden), with_kernel, rtol=1e-5, atol=1e-5)
    assert not took_kernel()


def test_a_damaged_library_is_named(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.kernel_file().parent.mkdir()
    native.kernel_file().write_bytes(b"no library")
    native.load.cache_clear()
    assert native.load() is None
    assert "doctor --build" in caplog.text


@pytest.mark.parametrize(
    ("compiler", "cause"), [("no-such", "no C compiler"), ("false", "compile")]
)
def test_who_cannot_build_is_told_why(monkeypatch, tmp_path, compiler, cause):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(ResourceError, match=cause):
        native.build()
    assert not list(tmp_path.rglob("*.so"))


def traced(layer, hidden):
    return torch.jit.trace(lambda h: layer.update(h, view_of(layer)), hidden)(hidden)


def made_into_a_graph(layer, hidden):
    return make_fx(lambda h: layer.update(h, view_of(layer)))(hidden)(hidden)


def without_memory(layer, hidden):
    with FakeTensorMode(allow_non_fake_inputs=True) as fakes:
        layer.update(fakes.from_tensor(hidden), view_of(layer))
    return update(layer, hidden)


@pytest.mark.filterwarnings("ignore:.*(trac|Converting).*")
@pytest.mark.parametrize("watch", [traced, made_into_a_graph, without_memory])
def test_whoever_records_operations_sees_them_all(watch):
    layer, hidden = made("paper", torch.float32), make_hidden(3, 16).float()
    expected = update(layer.requires_grad_(False), hidden)
    with torch.no_grad():
        torch.testing.assert_close(watch(layer, hidden), expected, rtol=1e-5, atol=1e-5)


def test_a_linear_map_of_another_dtype_is_not_read_as_this_one():
    layer, hidden = made("paper", torch.float32), make_hidden(3, 16, dtype=torch.bfloat16)
    kernel = native.compiled_one_loop(layer.controller, hidden, False, None)
    a, wide = make_hidden(3, 32).float(), kernel._replace(hidden=hidden.float())
    assert torch.equal(kernel.weigh(a.clone()), wide.weigh(a.clone()))


def test_a_home_that_cannot_be_read_has_no_kernel(monkeypatch):
    monkeypatch.setattr(native.os, "stat", Mock(side_effect=PermissionError))
    native.load.cache_clear()
    assert native.load() is None
