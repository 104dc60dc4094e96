"""Packed training in real processes: FSDP2 and DDP give the gradients of one process."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from support.families import tiny_config
from support.forked import in_processes
from support.processes import PROCESSES, join, leave
from versatileffn.execution.packed_training import _PackedTraining
from versatileffn.ffn.config import Versatile
from versatileffn.models.family import model_class, reuse_config


def build(family, execution):
    config = reuse_config(tiny_config(family), Versatile(reuse_gains="learned"))
    torch.manual_seed(0)
    model = model_class(config)(config).eval()
    model.set_execution(execution)
    for name, weight in model.named_parameters():
        if "gain" in name:
            torch.nn.init.constant_(weight, 0.5)
    return model


def batch(rank):
    return torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(rank))


def gradients(model, ids):
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def work(rank, wrapping, family, execution, folder):
    join(rank, folder)
    model, packed = build(family, execution), []
    original = _PackedTraining.forward
    _PackedTraining.forward = staticmethod(lambda *a: packed.append(1) or original(*a))
    if wrapping == "fsdp2":
        mesh = init_device_mesh("cpu", (PROCESSES,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        grads = gradients(model, batch(rank))
        grads = {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in grads.items()}
    else:
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        ids = batch(rank)
        parallel(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    if rank == 0:
        torch.save((grads, len(packed)), folder / "grads.pt")
    leave()


CASES = [("fsdp2", "llama", "packed"), ("ddp", "phi3", "recompute"), ("fsdp2", "gemma2", "packed")]


@pytest.mark.parametrize(("wrapping", "family", "execution"), CASES)
def test_two_processes_average_what_one_would_compute(wrapping, family, execution, tmp_path):
    in_processes(work, wrapping, family, execution, tmp_path)
    actual, packed_calls = torch.load(tmp_path / "grads.pt")
    assert packed_calls == 2
    expected = {}
    for rank in range(PROCESSES):
        for name, grad in gradients(build(family, "masked"), batch(rank)).items():
            expected[name] = expected.get(name, 0) + grad / PROCESSES
    assert actual.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(actual[name], grad, rtol=1e-4, atol=1e-6, msg=name)
