"""Quantized models beside the one that they were made from: loaded, saved, generating, training.

Controllers, routers and gains keep their float32 weights, so that equal hidden states are decided
upon equally, to the bit; the control is the same model with quantized controllers, which decides
otherwise. `walk` runs each tool in a process of its own; as a script, with a tool's name and a
saved model, this file is that process and prints the outcome.
"""

import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import versatileffn  # noqa: F401, registers the models
from versatileffn.execution.select import execution_choices, forget_choices

HERE = Path(__file__)
sys.path[:0] = [str(HERE.parents[1])]

from portable.page import snippet  # noqa: E402

TEXT = HERE.parents[2] / "docs" / "using.md"
VOCABULARY, LENGTH, STEPS = 300, 64, 120
BOUNDS = {8: 0.02, 4: 0.2}
"""By bits: the most nats per token that the loss of text not trained on may move."""


def shown(name: str, saved: Path) -> Any:
    """What docs/tools.md's snippet calls by a name, the snippet run with a saved model."""
    names: dict[str, Any] = {"torch": torch}
    exec(snippet("TorchAoConfig").replace('"reused"', repr(str(saved))), names)
    return names[name]


TOOLS: dict[str, tuple[str, int, Callable[[Path], Any]]] = {
    "torchao int8": ("torchao", 8, partial(shown, "int8")),
    "torchao int4": ("torchao", 4, partial(shown, "int4")),
    "bitsandbytes int8": ("bitsandbytes", 8, lambda _: BitsAndBytesConfig(load_in_8bit=True)),
    "bitsandbytes nf4": (
        "bitsandbytes",
        4,
        lambda _: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    ),
}
"""The package whose version the table names, bits, and what Transformers is given."""


class Told(logging.Handler):
    """What the executors' log said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.lines.append(record.getMessage())


def decisions(model: Any) -> list[tuple[Tensor, Tensor]]:
    """Loops and gates of 512 hidden states, by each layer's controller."""
    noise = torch.Generator().manual_seed(3)
    hidden = torch.randn(512, model.config.hidden_size, generator=noise).to(model.dtype)
    plans = [layer.controller(hidden) for layer in model.reuse_layers()]
    return [(plan.loop_count, plan.gates) for plan in plans]


def alike(one: Any, other: Any) -> bool:
    """Whether two models decide upon equal hidden states to the bit alike."""
    pairs = zip(decisions(one), decisions(other), strict=True)
    return all(torch.equal(a, b) for ours, theirs in pairs for a, b in zip(ours, theirs))  # noqa: B905


def executors(model: Any, ids: Tensor) -> tuple[float, str]:
    """The loss, and the executor that ran."""
    forget_choices()
    loss = model(ids, labels=ids).loss
    if loss.requires_grad:
        loss.backward()
    return loss.item(), "+".join(sorted({c["executor"] for c in execution_choices()}))


def survives_saving(asked: Any, saved: Path) -> bool:
    """Whether a plain Llama, quantized, is the same after it was saved as before."""
    dense, ids = saved.parent / "plain-llama", torch.arange(2, 34).view(2, 16)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": VOCABULARY}
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=4)
    LlamaForCausalLM(config).save_pretrained(dense)
    model = AutoModelForCausalLM.from_pretrained(dense, quantization_config=asked).eval()
    before = model(ids).logits
    model.save_pretrained(dense / "quantized")
    return torch.equal(model(ids).logits, before)


def look(tool: str, saved: Path) -> str:
    """What one quantizer makes of a saved model."""
    package, bits, asked = TOOLS[tool]
    told = Told()
    logging.getLogger("versatileffn").addHandler(told)
    ids = torch.load(saved / "held-out.pt")
    plain = AutoModelForCausalLM.from_pretrained(saved).eval()
    model = AutoModelForCausalLM.from_pretrained(saved, quantization_config=asked(saved)).eval()
    with ExitStack() as control:
        for cls in (type(plain), type(plain.base_model)):
            control.enter_context(mock.patch.object(cls, "_keep_in_fp32_modules", None))
        wrong = AutoModelForCausalLM.from_pretrained(saved, quantization_config=asked(saved)).eval()
    with torch.no_grad():
        assert alike(model, plain), "a controller lost precision"
        if package == "torchao":  # bitsandbytes takes no subclass of nn.Linear, asked or not
            assert not alike(wrong, plain), "a quantized controller decides as if it weren't"
        before, (after, running) = executors(plain, ids)[0], executors(model, ids)
        moved = after - before
        assert abs(moved) <= BOUNDS[bits], f"the loss moved by {moved:+.3f}: {before:.3f} before"
        tokens = model.generate(ids[:2, :8], max_new_tokens=8, do_sample=False)
        saving = ""
        if survives_saving(asked(saved), saved):
            model.save_pretrained(saved / "quantized")
            again = AutoModelForCausalLM.from_pretrained(saved / "quantized").eval()
            assert alike(again, plain), "a controller lost precision in the file"
            assert torch.equal(again(ids).logits, model(ids).logits), "other logits after loading"
            other = again.generate(ids[:2, :8], max_new_tokens=8, do_sample=False)
            assert torch.equal(tokens, other), "other tokens after loading"
        else:
            saving = "; saving it spoils its weights, a plain Llama's too"
    model.train().set_reuse_noise(False)
    if not model.is_quantized or not model.hf_quantizer.is_trainable:
        return f"works: loss {before:.3f}, quantized {moved:+.4f}; executor {running}{saving}"
    for name, weight in model.named_parameters():
        if weight.is_floating_point():
            weight.requires_grad_("controller" in name or "gains" in name)
    training = executors(model, ids)[1]
    assert any("falls back" in line for line in told.lines), "the slow executor wasn't told"
    return (
        f"works: loss {before:.3f}, quantized {moved:+.4f}; executor {running}, "
        f"in training {training}, as the log says{saving}"
    )


def trained(place: Path) -> Path:
    """A small model that has read some text, and text that it hasn't."""
    from support.models import make_model
    from versatileffn.data.tokenizers import train_bpe

    if (place / "trained" / "held-out.pt").is_file():
        return place / "trained"
    text = TEXT.read_text("utf-8")
    ids = torch.tensor(train_bpe([text], VOCABULARY)(text)["input_ids"])
    windows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    held_out, read = windows[-8:], windows[:-8]
    model = make_model(
        reuse_gains="learned", hidden_size=128, intermediate_size=256, vocab_size=VOCABULARY,
        initializer_range=0.05,
    ).train()  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(STEPS):
        rows = read[torch.arange(step * 8, step * 8 + 8) % len(read)]
        model(rows, labels=rows, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.set_tau(0.1)
    model.save_pretrained(place / "trained")
    torch.save(held_out, place / "trained" / "held-out.pt")
    return place / "trained"


def walk(version: str, place: Path) -> list[dict[str, str]]:
    """Rows of the table.

    Args:
        version: of Transformers.
        place: a folder for it.
    """
    from portable.environment import with_package

    saved, rows = trained(place), []
    there = with_package(place / "venv-quantizers", place, version, "torchao", "bitsandbytes")
    for tool, (package, _, _) in TOOLS.items():
        beside = f"{there.version(package)}, beside Transformers {version}"
        outcome = there.outcome(HERE, tool, str(saved))
        rows.append({"tool": tool, "version": beside, "outcome": outcome})
    return rows


if __name__ == "__main__":
    print(look(sys.argv[1], Path(sys.argv[2])))
