"""Weights of a large checkpoint are in memory once: they are read file by file, and shared."""

import subprocess
import sys

import pytest
import safetensors.torch
import torch
from transformers import LlamaConfig, LlamaForCausalLM

SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 7,
    "num_attention_heads": 8,
}
"""240 MiB in bfloat16."""
MEASURED = """
import re, sys
from pathlib import Path
import torch
import versatileffn as vf
from transformers import LlamaConfig, LlamaForCausalLM

def peak():  # of this program; getrusage's may be that of the process which started it
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

tiny = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
                   num_attention_heads=2)
LlamaForCausalLM(tiny).save_pretrained(sys.argv[2] + "/tiny")
vf.upcycle(sys.argv[2] + "/tiny")[0].save_pretrained(sys.argv[2] + "/tiny-out")
before = peak()  # whatever is imported for it, is
if sys.argv[3] == "twice":  # the wrong control
    kept = LlamaForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
    kept = [parameter.clone() for parameter in kept.parameters()]
model, receipt = vf.upcycle(sys.argv[1])
assert receipt.logit_difference == 0, receipt
model.save_pretrained(sys.argv[2] + "/out", max_shard_size="100MB")
weights = sum(p.numel() * p.itemsize for p in model.parameters())
print((peak() - before) * 1024 / weights)
"""


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's peak of a process")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            module.inv_freq.fill_(0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    model.save_pretrained(folder, max_shard_size="50MB")
    shards = list(folder.glob("*.safetensors"))
    assert len(shards) > 3
    for path in shards:
        misalign(path)
    return folder


def misalign(path):
    """Put a file's tensors where products round differently, so that each has to be moved."""
    tensors = safetensors.torch.load_file(path)
    for length in range(16):
        safetensors.torch.save_file(tensors, path, {"format": "pt", "padding": "." * length})
        header = int.from_bytes(path.read_bytes()[:8], "little")
        if (8 + header) % 16:
            return
    raise AssertionError("no header's length puts tensors elsewhere")


def copies(large, tmp_path, mode):
    command = [sys.executable, "-c", MEASURED, str(large), str(tmp_path), mode]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.strip().splitlines()[-1])


def test_upcycling_and_saving_take_the_weights_once(large, tmp_path):
    assert copies(large, tmp_path, "once") < 1.35


def test_a_second_copy_would_be_seen(large, tmp_path):
    assert copies(large, tmp_path, "twice") > 1.6
