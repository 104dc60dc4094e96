"""Per-item predictions are those of ai2-olmo-eval's own loop."""

from pathlib import Path

import pytest
import torch

from evaluation.tasks import subjects
from evaluation.tasks.olmo_loop import olmo_loop
from versatileffn.evaluation.tasks.catalogue import PAPER8
from versatileffn.evaluation.tasks.loading import context_length, load_subject
from versatileffn.evaluation.tasks.metrics import metric_name
from versatileffn.evaluation.tasks.requests import olmo_dataset
from versatileffn.evaluation.tasks.run import evaluate
from versatileffn.evaluation.tasks.tokenizer import RequestTokenizer

STORIES = Path(__file__).parents[3].parent / "shared" / "models" / "stories15m"
ITEMS = 12


def check_same(subject, task, items=ITEMS):
    """Log-likelihoods to rounding, predictions exactly, the score with both conventions."""
    records = evaluate(subject, [task], limit=items).records[task.label]
    words, context = RequestTokenizer(subject.tokenizer), context_length(subject.model)
    theirs = olmo_loop(subject.model, olmo_dataset(task, words, context, items), batch_size=7)
    assert len(records) == len(theirs.log_likelihoods) == items
    with_space, without = theirs.predictions(), theirs.predictions(leading_space=False)
    for record in records:
        per = record.characters if task.metric == "len_norm" else [1] * len(record.characters)
        ours = [s / n for s, n in zip(record.log_likelihoods, per, strict=True)]
        assert ours == pytest.approx(theirs.log_likelihoods[record.index], rel=2e-5)
        assert record.predictions[metric_name(task, "olmo_eval")] == with_space[record.index]
        assert record.predictions[metric_name(task, "paper")] == without[record.index]
    right = [record.correct(metric_name(task, "olmo_eval")) for record in records]
    assert sum(right) / items == pytest.approx(theirs.score)
    return records


@pytest.mark.parametrize("task", PAPER8, ids=lambda task: task.label)
@pytest.mark.parametrize("kind", ["llama", "versatile"])
def test_random_models_predict_as_in_olmo_evals_loop(kind, task):
    records = check_same(getattr(subjects, kind)(), task)
    assert len({r.predictions["acc"] for r in records}) > 1  # the check could fail


@pytest.mark.skipif(not STORIES.exists(), reason="no checkpoint beside this clone")
@pytest.mark.parametrize("task", PAPER8, ids=lambda task: task.label)
def test_a_real_model_predicts_as_in_olmo_evals_loop(task):
    check_same(load_subject(str(STORIES)), task, items=8)


def test_a_wrong_model_is_noticed():
    """The control: another model's answers don't pass for this one's."""
    task = PAPER8[0]
    one, other = subjects.llama(), subjects.llama()
    with torch.no_grad():
        other.model.lm_head.weight += 0.3 * torch.randn_like(other.model.lm_head.weight)
    mine = evaluate(one, [task], limit=ITEMS).records[task.label]
    words = RequestTokenizer(other.tokenizer)
    theirs = olmo_loop(other.model, olmo_dataset(task, words, 1024, ITEMS))
    assert [r.predictions["len_norm_with_leading_space"] for r in mine] != list(
        theirs.predictions().values()
    )


def test_olmos_tokenizer_gives_the_tokens_of_olmo_evals_own_wrapper():
    from olmo_eval import HFTokenizer

    from versatileffn.data.tokenizers import find_tokenizer

    name = "tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json"
    theirs = HFTokenizer(name, pad_token_id=1, eos_token_id=50279)
    ours = RequestTokenizer(find_tokenizer("olmo"))
    assert ours.bos_token_id is None
    for task in PAPER8:
        mine, own = (olmo_dataset(task, words, 2048, 20).samples for words in (ours, theirs))
        assert [(s["query"], s["continuation"]) for s in mine] == [
            (s["query"], s["continuation"]) for s in own
        ]
