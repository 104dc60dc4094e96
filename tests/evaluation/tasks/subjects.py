"""Small models with a tokenizer that turns every text into tokens."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import versatileffn as vf
from versatileffn.data.tokenizers import train_bpe
from versatileffn.evaluation.tasks.loading import Subject

VOCABULARY = 300
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
}
"""With an initialization large enough that predictions aren't chance between equals."""

TEXTS = [
    "Question: What is the answer to this question?\nAnswer: that the person is in the water. "
]


def tokenizer():
    return train_bpe(TEXTS * 3, VOCABULARY)


def llama(dtype=torch.float32, **settings) -> Subject:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(SIZES | settings))).to(dtype).eval()
    return Subject("random-llama", model, tokenizer())


def versatile(dtype=torch.float32, **settings) -> Subject:
    torch.manual_seed(0)
    config = vf.VersatileLlamaConfig(**(SIZES | settings))
    return Subject(
        "random-versatile", vf.VersatileLlamaForCausalLM(config).to(dtype).eval(), tokenizer()
    )
