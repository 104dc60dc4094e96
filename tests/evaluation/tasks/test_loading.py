"""Models from GGUF files, and what context they take."""

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from evaluation.tasks import subjects
from support.gguf import write_gguf
from versatileffn.errors import CheckpointError, DataError
from versatileffn.evaluation.tasks.loading import DEFAULT_CONTEXT, context_length, load_subject


def test_a_gguf_file_is_the_model_it_was_written_from(tmp_path):
    original = subjects.llama()
    original.tokenizer.save_pretrained(tmp_path / "words")
    write_gguf(original.model, tmp_path / "tiny.gguf")
    loaded = load_subject(str(tmp_path / "tiny.gguf"), tokenizer=str(tmp_path / "words"))
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.allclose(loaded.model(ids).logits, original.model(ids).logits, atol=1e-5)
    with pytest.raises(DataError, match="has no tokenizer that loads"):
        load_subject(str(tmp_path / "tiny.gguf"))  # this one carries none


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    subject = subjects.llama()
    with torch.no_grad():
        subject.model.lm_head.weight[3] = float("nan")
    subject.model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight holds NaN"):
        load_subject(str(tmp_path))


def test_the_context_is_the_configs():
    small = {"vocab_size": 9, "n_layer": 1, "n_head": 1, "bos_token_id": None, "eos_token_id": None}
    assert context_length(subjects.llama(max_position_embeddings=77).model) == 77
    assert context_length(GPT2LMHeadModel(GPT2Config(n_positions=33, n_embd=8, **small))) == 33
    bloom = BloomForCausalLM(BloomConfig(hidden_size=8, **small))
    assert context_length(bloom) == DEFAULT_CONTEXT
