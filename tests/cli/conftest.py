"""A tiny checkpoint with a tokenizer of its own."""

import pytest

from support.models import make_model
from versatileffn.data.tokenizers import train_bpe


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory):
    """Makes a folder with a model of some settings, its tokenizer beside it."""

    def make(template=None, **settings):
        folder = tmp_path_factory.mktemp("checkpoint")
        words = train_bpe(["a text of some words"] * 3, 300)
        words.chat_template = template
        model = make_model(vocab_size=len(words), bos_token_id=0, eos_token_id=1, **settings)
        model.save_pretrained(folder)
        words.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def folder(make_folder):
    """Of the versatile variant."""
    return make_folder()
