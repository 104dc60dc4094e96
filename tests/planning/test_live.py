"""Live bytes: what is made counts once, what goes doesn't, what changes its size does."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from versatileffn.planning.live import LiveMemory


def test_bytes_come_and_go_with_their_tensors():
    with LiveMemory() as memory:
        memory.part = "a"
        first = torch.zeros(100)
        view, same = first[:10], first.mul_(2)
        memory.part = "b"
        second = torch.ones(50, dtype=torch.bfloat16)
        assert memory.parts == {"a": 400, "b": 100}
        del first, view
        assert memory.total == 500  # `same` holds it
        del same
    assert memory.parts["a"] == 0
    assert memory.peak == {"a": 400, "b": 100}
    del second


def test_the_peak_is_of_one_moment_and_can_be_forgotten():
    with LiveMemory() as memory:
        large = torch.zeros(1000)
        del large
        memory.forget_peak()
        small = torch.zeros(10)
    assert sum(memory.peak.values()) == 40
    del small


def test_what_a_tensor_is_for_may_turn_out_later():
    with LiveMemory() as memory:
        memory.part = "made"
        tensor, none = torch.zeros(8), None
        memory.belongs_to("known", [tensor, none, torch.zeros(2)[:0]])
        assert memory.parts["known"] == 32
        assert memory.parts["made"] == 0
        del tensor
        assert memory.parts["known"] == 0


def test_storages_that_shrink_and_grow_are_followed_and_torch_is_left_as_it_was():
    before = torch.UntypedStorage.resize_
    with LiveMemory() as memory:
        tensor = torch.zeros(8)
        tensor.untyped_storage().resize_(0)
        assert memory.total == 0
        tensor.untyped_storage().resize_(64)
        assert memory.total == 64
    assert torch.UntypedStorage.resize_ is before


def test_fake_tensors_count_as_real_ones():
    def step() -> torch.Tensor:
        linear = torch.nn.Linear(16, 16)
        return linear(torch.zeros(4, 16)).sigmoid().sum()

    with LiveMemory() as real:
        step().backward()
    with FakeTensorMode(), LiveMemory() as fake:
        step().backward()
    assert real.peak == fake.peak
    assert sum(fake.peak.values()) > 4 * 16 * 16
