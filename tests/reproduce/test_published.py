"""Stages that publish a folder, killed right after it was in place."""

import json
import os
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

from support.models import SHAPE
from versatileffn.reproduce.arms import PAPER
from versatileffn.reproduce.protocol import protocol
from versatileffn.reproduce.steps import Context, convert, tokenize


def test_a_stage_killed_after_publishing_leaves_nothing_beside_its_tokens(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"text": f"document {i}: {chr(97 + i % 26) * i}"}) for i in range(60)]
    corpus.write_text("\n".join(lines))
    folder = tmp_path / "stage"
    tokens = tokenize(protocol("smoke"), str(corpus), folder)
    (folder / ".tokens.partial-abc" / "ready").mkdir(parents=True)
    assert tokenize(protocol("smoke"), str(corpus), folder) == tokens
    assert os.listdir(folder) == ["tokens"]


def test_a_stage_killed_after_publishing_leaves_nothing_beside_its_model(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "stage"
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(base)
    folder.mkdir()
    context = Context(protocol("smoke"), tmp_path, seed=0)
    converted = convert(context, PAPER[0], base, folder)
    (folder / ".model.partial" / "old").mkdir(parents=True)
    assert convert(context, PAPER[0], base, folder) == converted
    assert os.listdir(folder) == ["model"]
