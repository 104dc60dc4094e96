"""GGUF files for tests, written with the format's own library."""

import json

import pytest


def write_gguf(model, path, tokenizer=None):
    """The file that llama.cpp's converter would write for a Llama, weights in float32.

    Args:
        tokenizer: a byte-level BPE to put into it; its first token stands for the beginning.
    """
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
    if tokenizer is not None:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        vocab = sorted(content["model"]["vocab"].items(), key=lambda item: item[1])
        special = {token["id"] for token in content["added_tokens"]}
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([token for token, _ in vocab])
        writer.add_token_types([3 if number in special else 1 for _, number in vocab])
        writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
        writer.add_bos_token_id(config.bos_token_id)
        writer.add_eos_token_id(config.eos_token_id)
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
