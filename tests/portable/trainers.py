"""Other people's trainers, a few steps each, on tiny models; as a script it says what came of it.

    python tests/portable/trainers.py "TRL DPOTrainer"

It needs peft and trl, and this package importable.
"""

import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__)
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2] / "src")]

import versatileffn as vf  # noqa: E402
from support.models import make_ids, make_model  # noqa: E402

WORDS = ["<pad>", "<eos>", *"abcdefgh"]
LEARNED = {"variant": "versatile", "reuse_gains": "learned"}
STEPS = 3


def own_tokenizer() -> PreTrainedTokenizerFast:
    """Eight words."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>"
    )


def preferences() -> Any:
    """Four pairs of answers, of which the first is preferred."""
    from datasets import Dataset

    asked = {"prompt": ["a b", "c d"] * 2, "chosen": [" e f", " g"] * 2}
    return Dataset.from_dict(asked | {"rejected": [" a", " b h"] * 2})


def reloaded(folder: str, **settings: Any) -> Any:
    """A model that lies in a folder: preference trainers load the reference from there."""
    make_model(**settings).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def run(kind: str, model: Any, dataset: Any, folder: str, **options: Any) -> list[float]:
    """Train by TRL's trainer of that name; the losses. Every weight has to move."""
    import trl

    settings = options.pop("settings", {})
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = getattr(trl, f"{kind}Trainer")(
        model=model,
        args=getattr(trl, f"{kind}Config")(
            folder, max_steps=STEPS, per_device_train_batch_size=2, report_to="none", use_cpu=True,
            bf16=False, learning_rate=1e-2, save_strategy="no", disable_tqdm=True, logging_steps=1,
            **settings,
        ),
        train_dataset=dataset, processing_class=own_tokenizer(), **options,
    )  # fmt: skip
    trainer.train()
    still = [n for n, weight in model.named_parameters() if torch.equal(weight, before[n])]
    assert not still, f"{kind} trains no {still[0]}"
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == STEPS
    assert all(math.isfinite(loss) for loss in losses)
    return losses


def sft(folder: str, **settings: Any) -> str:
    """Supervised fine-tuning; TRL's loss, from the base model, has no balance loss."""
    from datasets import Dataset

    texts = Dataset.from_dict({"text": ["a b c d e f g h", "a b b a", "h g f", "c c c"]})
    run("SFT", make_model(**(settings or LEARNED)), texts, folder, callbacks=[vf.AnnealTau()])
    return f"works: {STEPS} steps, every weight moves"


def dpo(folder: str, noise: bool = False) -> float:
    """The first loss of preference optimization."""
    model = reloaded(folder, **LEARNED)
    model.set_reuse_noise(noise)
    return run("DPO", model, preferences(), folder, callbacks=[vf.AnnealTau()])[0]


def grpo(folder: str) -> str:
    """Answers with many even tokens are rewarded."""
    from datasets import Dataset

    def even(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]

    model = reloaded(folder, **LEARNED)
    model.set_reuse_noise(False)
    prompts = Dataset.from_dict({"prompt": ["a b", "c d"] * 2})
    options = {"reward_funcs": even, "callbacks": [vf.AnnealTau()]}
    run("GRPO", model, prompts, folder, **options,
        settings={"num_generations": 2, "max_completion_length": 8})  # fmt: skip
    return f"works: {STEPS} steps, every weight moves"


def lora(folder: str) -> str:
    """PEFT with `lora_config`: trained, saved, loaded, merged."""
    from peft import PeftModel, get_peft_model

    model, ids = reloaded(folder, **LEARNED), make_ids(2, 9)
    wrapped = get_peft_model(model, vf.lora_config(model, r=4)).train()
    before = {n: weight.clone() for n, weight in wrapped.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW([w for w in wrapped.parameters() if w.requires_grad], lr=1e-2)
    for _ in range(STEPS):
        wrapped(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = [n for n, weight in wrapped.named_parameters() if n in before]
    assert all(not torch.equal(wrapped.get_parameter(name), before[name]) for name in moved)
    wrapped.eval().save_pretrained(f"{folder}/adapter")
    base = AutoModelForCausalLM.from_pretrained(folder)
    loaded = PeftModel.from_pretrained(base, f"{folder}/adapter").eval()
    with torch.no_grad():
        expected = wrapped(input_ids=ids).logits
        assert torch.equal(loaded(input_ids=ids).logits, expected)
        away = (loaded.merge_and_unload()(input_ids=ids).logits - expected).abs().max()
    assert away < 1e-3
    return f"works: adapters, gains and controllers train; loaded equal, merged within {away:.0e}"


def first_losses(folder: str) -> str:
    """DPO starts at ln 2 without noise, and elsewhere with it."""
    quiet, noisy = dpo(folder), dpo(folder, noise=True)
    assert abs(quiet - math.log(2)) < 1e-4, quiet
    assert abs(noisy - math.log(2)) > 1e-3, noisy
    return f"works: the first loss is ln 2 = {quiet:.4f}; with reuse noise on, {noisy:.4f}"


TOOLS: dict[str, Callable[[str], str]] = {
    "PEFT LoRA": lora, "TRL SFTTrainer": sft, "TRL DPOTrainer": first_losses,
    "TRL GRPOTrainer": grpo,
}  # fmt: skip


def look(name: str) -> str:
    """What came of one tool."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        return TOOLS[name](folder)


def walk(version: str, place: Path) -> list[dict[str, str]]:
    """Rows of the table.

    Args:
        version: of Transformers.
        place: a folder for it.
    """
    from portable.environment import with_package

    there = with_package(place / "venv-trainers", place, version, "peft", "trl")
    rows = []
    for tool in TOOLS:
        beside = f"{there.version(tool.split()[0].lower())}, beside Transformers {version}"
        rows.append({"tool": tool, "version": beside, "outcome": there.outcome(HERE, tool)})
    return rows


if __name__ == "__main__":
    print(look(sys.argv[1]))
