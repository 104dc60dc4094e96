"""A real checkpoint, real text: upcycled at its old loss, then trained to a lower one."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import versatileffn as vf
from versatileffn.data.packed import PackedDataset
from versatileffn.data.tokenize import tokenize_corpus
from versatileffn.evaluation.held_out import held_out_loss
from versatileffn.training.config import TrainConfig
from versatileffn.training.run import train

SHARED = Path(__file__).parents[2].parent / "shared"
STORIES, TEXT = SHARED / "models" / "stories15m", SHARED / "data" / "wiki_val.jsonl"


@pytest.mark.skipif(
    not (STORIES.exists() and TEXT.exists()), reason="no checkpoint and text beside this clone"
)
def test_upcycling_keeps_the_loss_and_training_lowers_it(tmp_path):
    tokens = tmp_path / "tokens"
    tokenize_corpus(TEXT, tokens, tokenizer=str(STORIES), limit_documents=150, val_fraction=0.2)
    held_out = PackedDataset(tokens, "val", seq_len=64)

    dense = AutoModelForCausalLM.from_pretrained(STORIES)
    before = held_out_loss(dense, held_out, windows=range(24))
    reused, receipt = vf.upcycle(STORIES, vf.Versatile(reuse_gains="learned"))
    assert receipt.logit_difference <= 1e-5
    converted = held_out_loss(reused, held_out, windows=range(24))
    assert converted.nats_per_token == pytest.approx(before.nats_per_token, abs=1e-5)

    config = TrainConfig.model_validate(
        {
            "model": {
                "init_from": str(STORIES),
                "ffn": {"variant": "versatile", "reuse_gains": "learned"},
            },
            "data": {"tokens": str(tokens), "seq_len": 64},
            "optim": {"learning_rate": 3e-4},
            "run": {
                "output_dir": str(tmp_path / "run"),
                "max_steps": 12,
                "tokens_per_batch": 512,
                "bf16": True,
                "eval_steps": 12,
                "eval_windows": 24,
                "save_steps": 12,
                "logging_steps": 4,
                "report_to": [],
            },
        }
    )
    trained = AutoModelForCausalLM.from_pretrained(train(config) / "model")
    after = held_out_loss(trained, held_out, windows=range(24))
    assert after.nats_per_token < before.nats_per_token - 0.3
    gains = [layer.gains.loop_gains for layer in trained.model.layers]
    assert all(gain.abs().max() > 0 for gain in gains)
