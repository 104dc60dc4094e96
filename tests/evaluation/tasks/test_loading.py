"""Models from GGUF files, and what context they take."""

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from evaluation.tasks import subjects
from versatileffn.errors import CheckpointError, DataError
from versatileffn.evaluation.tasks.loading import DEFAULT_CONTEXT, context_length, load_subject


def write_gguf(model, path):
    """The file that llama.cpp's converter would write for a Llama, weights in float32."""
    gguf = pytest.importorskip("gguf", reason="reading GGUF needs the package gguf")
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        for part, count in heads.items():
            if part in name:  # that library pairs neighbouring dimensions in its rotation
                split = tensor.view(count, 2, tensor.shape[0] // count // 2, tensor.shape[1])
                tensor = split.transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
