"""Exported models, and what the package's masked execution makes of them."""

from pathlib import Path

import torch
from transformers import Gemma2Config, Olmo2Config

from support.models import SHAPE, make_ids, make_model
from versatileffn.data.tokenizers import train_bpe
from versatileffn.ffn.config import Versatile
from versatileffn.models.family import HEADS, make_classes, model_class, reuse_config
from versatileffn.publish.export import export

TEXT = "a text of some words"
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
CLASSIFYING = {
    "classifier": "ForSequenceClassification",
    "tagger": "ForTokenClassification",
    "answerer": "ForQuestionAnswering",
}
"""Cases that generate nothing, and their heads."""
HEAD_SIZES = {"num_key_value_heads": 4, "head_dim": 8}


def models() -> dict:
    """Paper form, learned gains, k-loop, real experts; two with post-norms; classifiers."""
    learned = Versatile(reuse_gains="learned")
    found = {
        "paper": make_model(variant="versatile"),
        "learned": make_model(variant="versatile", reuse_gains="learned", vocab_size=300),
        "k-loop": make_model(variant="k-loop", num_loops=3),
        "moe": make_model(variant="moe"),
    }
    torch.manual_seed(0)
    for name, dense in (
        ("olmo2", Olmo2Config(**SHAPE)),
        ("gemma2", Gemma2Config(**(SHAPE | HEAD_SIZES))),
    ):
        config = reuse_config(dense, learned)
        found[name] = model_class(config)(config)
    labelled = make_model(variant="versatile").config
    labelled.num_labels = 3
    for name, head in CLASSIFYING.items():
        found[name] = make_classes("llama")[f"Llama{head}"](labelled)
    with torch.no_grad():
        for model in found.values():
            for name, parameter in model.named_parameters():
                if "gain" in name:
                    parameter.fill_(0.5)
    return found


def write_case(root: Path, name: str, model) -> Path:
    """One case as `elsewhere.py` wants it."""
    case, head = root / name, CLASSIFYING.get(name, "ForCausalLM")
    model.save_pretrained(case / "saved")
    if name == "learned":
        tokenizer = train_bpe([TEXT] * 3, 300)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(case / "saved")
    export(str(case / "saved"), case / "out")
    ids = make_ids(2, 9)
    model.eval().set_execution("masked")
    with torch.no_grad():
        outputs, tokens = model(ids), None
        if head == "ForCausalLM":
            tokens = model.generate(ids, max_new_tokens=6, do_sample=False)
    torch.save(
        {
            "auto": HEADS[head][0].__name__,
            "ids": ids,
            "logits": outputs[0],  # where an answer begins, for those that find one
            "tokens": tokens,
            "text": TEXT if name == "learned" else None,
        },
        case / "expected.pt",
    )
    return case
