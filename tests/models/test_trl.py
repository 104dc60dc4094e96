"""TRL's SFTTrainer with its defaults, where TRL is installed (`pip install trl`)."""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from support.models import VARIANTS, make_model

trl = pytest.importorskip("trl", reason="TRL isn't installed")

WORDS = ["<pad>", "<eos>", *"abcdefgh"]


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.filterwarnings("ignore:a loss that is computed outside")
def test_supervised_fine_tuning(settings, tmp_path):
    """Every weight is trained; TRL's loss, from the base model, has no balance loss."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>"
    )
    model = make_model(**settings)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(
            tmp_path, max_steps=2, per_device_train_batch_size=2, report_to="none", use_cpu=True,
            bf16=False, learning_rate=1e-2, save_strategy="no", disable_tqdm=True, logging_steps=1,
        ),
        train_dataset=Dataset.from_dict({"text": ["a b c d e f g h", "a b b a", "h g f", "c c c"]}),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 2
    assert not any("aux_loss" in entry for entry in logged)
    still = [n for n, weight in model.named_parameters() if torch.equal(weight, before[n])]
    assert not still
