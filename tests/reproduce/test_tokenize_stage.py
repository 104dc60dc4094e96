"""The stage that tokenizes, killed right after its output was in place."""

import json
import os
from pathlib import Path

from versatileffn.reproduce.protocol import protocol
from versatileffn.reproduce.steps import tokenize


def test_a_stage_killed_after_publishing_leaves_nothing_beside_its_tokens(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"text": f"document {i}: {chr(97 + i % 26) * i}"}) for i in range(60)]
    corpus.write_text("\n".join(lines))
    folder = tmp_path / "stage"
    tokens = tokenize(protocol("smoke"), str(corpus), folder)
    (folder / ".tokens.partial-abc" / "ready").mkdir(parents=True)
    assert tokenize(protocol("smoke"), str(corpus), folder) == tokens
    assert os.listdir(folder) == ["tokens"]
