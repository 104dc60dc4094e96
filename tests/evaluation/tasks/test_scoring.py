"""Sharing, selecting and batching change no log-likelihood."""

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from evaluation.tasks import subjects
from versatileffn.errors import CheckpointError, ConfigError, DataError, ResourceError
from versatileffn.evaluation import task_scores
from versatileffn.evaluation.tasks import products, scoring, tree
from versatileffn.evaluation.tasks.catalogue import find_tasks
from versatileffn.evaluation.tasks.modes import MODES
from versatileffn.evaluation.tasks.requests import Item, Request, build_items
from versatileffn.evaluation.tasks.scoring import Scorer
from versatileffn.evaluation.tasks.tokenizer import RequestTokenizer


def make_items(subject, names="piqa,winogrande,commonsense_qa", limit=5, context=1024):
    words = RequestTokenizer(subject.tokenizer)
    return [item for task in find_tasks(names) for item in build_items(task, words, context, limit)]


def score(subject, items, mode="", batch_tokens=1500):
    scored = Scorer(subject.model, batch_tokens, mode).score(items)
    return {(item.task, item.index): values for item, values in scored}


def flat(scores, items):
    return [value for item in items for value in scores[item.task, item.index]]


@pytest.mark.parametrize("kind", ["llama", "versatile"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_equals_single_requests_in_float64(kind, mode):
    subject = getattr(subjects, kind)(torch.float64)
    items = make_items(subject)
    plain = Scorer(subject.model, 1500)
    with torch.no_grad():
        expected = [value for item in items for value in plain.plain(item)]
    assert flat(score(subject, items, mode), items) == pytest.approx(expected, rel=0, abs=1e-10)


def test_the_batch_changes_nothing_in_float64():
    subject = subjects.versatile(torch.float64)
    items = make_items(subject)
    expected = flat(score(subject, items, batch_tokens=1), items)
    assert flat(score(subject, items, batch_tokens=9000), items) == pytest.approx(
        expected, rel=0, abs=1e-10
    )


def test_batches_hold_whole_items_longest_first_with_little_padding():
    subject = subjects.llama()
    items = make_items(subject, "piqa,commonsense_qa,winogrande", limit=20)
    scorer = Scorer(subject.model, 3000, MODES[0])
    batches = list(scorer._batches(items))
    sizes = [list(map(len, batch)) for batch in batches]
    in_order = [size for some in sizes for size in some]
    assert in_order == sorted(in_order, reverse=True)
    assert sorted((t.item.task, t.item.index) for batch in batches for t in batch) == sorted(
        (item.task, item.index) for item in items
    )
    assert all(len(size) * max(size) <= 3000 for size in sizes)
    padded, real = (sum(map(sum, rows)) for rows in ([[max(s)] * len(s) for s in sizes], sizes))
    assert padded < 1.3 * real
    one = max(items, key=lambda item: len(item.requests[0].query))
    assert len(list(Scorer(subject.model, 1, MODES[0])._batches([one]))) == 1


def test_a_mask_that_is_merely_causal_is_noticed(monkeypatch):
    """The control: nodes that see other choices' tokens give other log-likelihoods."""
    subject = subjects.llama(torch.float64)
    items = make_items(subject)
    expected = flat(score(subject, items, MODES[0]), items)

    def causal(trees, width):
        return torch.ones(len(trees), width, width, dtype=torch.bool).tril().numpy()

    monkeypatch.setattr(tree, "_sees", causal)
    wrong = flat(score(subject, items, MODES[0]), items)
    assert max(abs(w - e) for w, e in zip(wrong, expected, strict=True)) > 1e-3
    scorer = Scorer(subject.model, 1500)
    list(scorer.score(items))
    assert scorer.mode == "single"  # and the scorer itself turns to another way


def test_a_tree_holds_each_prefix_once():
    queries = [(1, 2, 3, 4), (1, 2, 5), (1, 2, 3), (7, 2)]
    grown = tree.grow_tree(Item("t", 0, 0, "", tuple(Request(q, (1,), 1, 0) for q in queries)))
    assert grown.tokens == [1, 2, 3, 4, 5, 7, 2]
    assert grown.depths == [0, 1, 2, 3, 2, 0, 1]
    assert [path.tolist() for path in grown.paths] == [[0, 1, 2, 3], [0, 1, 4], [0, 1, 2], [5, 6]]
    seen = tree._sees([grown], 8)[0]
    visible = [{j for j in range(8) if seen[i, j]} for i in range(8)]
    assert visible == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}, {0, 1, 4}, {5}, {5, 6}, {7}]


def foreign(name):
    small = {"vocab_size": subjects.VOCABULARY, "initializer_range": 0.3}
    wide = small | {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    torch.manual_seed(0)
    makers = {
        "gptneo": lambda: GPTNeoForCausalLM(
            GPTNeoConfig(
                hidden_size=32,
                num_layers=2,
                num_heads=4,
                window_size=170,
                attention_types=[[["global", "local"], 1]],
                **small,
            )
        ),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, **small)),
        "bloom": lambda: BloomForCausalLM(
            BloomConfig(hidden_size=32, n_layer=2, n_head=4, **small)
        ),
        "gemma2": lambda: Gemma2ForCausalLM(
            Gemma2Config(final_logit_softcapping=3.0, sliding_window=4096, **wide)
        ),
        "narrow gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(sliding_window=16, **wide)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(sliding_window=4096, **wide)),
    }
    return subjects.Subject(name, makers[name]().eval(), subjects.tokenizer())


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("gpt2", "tree"),
        ("mistral", "tree"),
        ("bloom", "single"),
        ("gemma2", "tree-full"),
        ("narrow gemma2", "single"),
        ("gptneo", "single"),
    ],
)
def test_other_families_get_the_fastest_mode_that_is_right_for_them(name, mode):
    """ALiBi takes no positions, a soft cap isn't a projection, a window needs its own mask.

    GPT-Neo's window is narrower than the largest tree only.
    """
    subject = foreign(name)
    items = make_items(subject, limit=3)
    scorer = Scorer(subject.model, 1500)
    found = {(item.task, item.index): values for item, values in scorer.score(items)}
    with torch.no_grad():
        expected = [value for item in items for value in scorer.plain(item)]
    assert scorer.mode == mode
    assert flat(found, items) == pytest.approx(expected, rel=1e-4)


def test_nan_stops_at_the_request():
    subject = subjects.llama()
    items = make_items(subject, "piqa", limit=3)
    with torch.no_grad():
        subject.model.lm_head.weight[items[1].requests[1].targets[0]] = float("nan")
    with pytest.raises(CheckpointError, match=r"piqa, item \d, choice \d is nan: .*damaged"):
        score(subject, items)
    with pytest.raises(CheckpointError, match=r"piqa, item \d, choice \d is nan"):
        score(subject, items, MODES[0])


def test_a_token_beyond_the_vocabulary_is_refused():
    subject = subjects.llama(vocab_size=40)
    with pytest.raises(DataError, match="knows only 40 tokens: use the tokenizer"):
        score(subject, make_items(subject, "piqa", limit=1))


def test_the_models_mode_and_gradients_are_the_callers():
    subject = subjects.llama()
    subject.model.train()
    for _ in Scorer(subject.model, 100).score(make_items(subject, "piqa", limit=3)):
        assert torch.is_grad_enabled()
        assert subject.model.training


@pytest.mark.parametrize("blocks", [1, 3, 10**6])
def test_blocks_of_logits_change_nothing(monkeypatch, blocks):
    subject = subjects.llama(torch.float64)
    items = make_items(subject, "piqa", limit=3)
    expected = flat(score(subject, items, MODES[0]), items)
    monkeypatch.setitem(scoring.LOGITS_AT_ONCE, "cpu", blocks * subjects.VOCABULARY)
    assert flat(score(subject, items, MODES[0]), items) == pytest.approx(expected, abs=1e-10)


def test_onednn_computes_the_same_linear():
    torch.manual_seed(0)
    linear = torch.nn.Linear(48, 33)
    inputs = [torch.randn(2, 5, 48), torch.randn(48), torch.randn(5, 3, 48)[:, 1]]
    inputs += [torch.randn(48, 7).T, torch.randn(0, 48)]
    with torch.no_grad():
        expected = [linear(x) for x in inputs]
        with products.products(onednn=True):
            found = [linear(x) for x in inputs]
            half = linear.to(torch.bfloat16)(inputs[0].to(torch.bfloat16))  # left to PyTorch
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("onednn", [True, False])
def test_only_who_asks_for_onednn_gets_it(monkeypatch, onednn):
    """Nothing is timed: the other library's last digits would come and go with the machine."""
    calls = []
    linear = products.onednn_linear

    def spy(*args):
        calls.append(args)
        return linear(*args)

    monkeypatch.setattr(products, "onednn_linear", spy)
    subject = subjects.versatile()
    items = make_items(subject)
    scorer = Scorer(subject.model, 1500, onednn=onednn)
    found = {(item.task, item.index): values for item, values in scorer.score(items)}
    assert bool(calls) is onednn
    with torch.no_grad():
        expected = [value for item in items for value in scorer.plain(item)]
    assert flat(found, items) == pytest.approx(expected, rel=2e-5)


def test_onednn_is_for_float32():
    with pytest.raises(ConfigError, match=r"--onednn is for float32 on a CPU, not torch\.bfloat16"):
        Scorer(subjects.llama(torch.bfloat16).model, 1500, onednn=True)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[..] can't allocate memory: .."),
     MemoryError()],
)  # fmt: skip
@pytest.mark.parametrize("moment", ["choosing", "scoring"])
def test_memory_that_ran_out_is_told_and_changes_no_mode(monkeypatch, error, moment):
    subject = subjects.llama()
    items = make_items(subject, "piqa", limit=2)
    scorer = Scorer(subject.model, 1500)
    if moment == "scoring":
        scorer.choose(items)

    def too_large(*_):
        raise error

    monkeypatch.setattr(scorer, "_forward", too_large)
    with pytest.raises(ResourceError, match="ran out of memory: lower --batch-tokens"):
        list(scorer.score(items))


def test_a_devices_failure_changes_no_mode(monkeypatch):
    subject = subjects.llama()

    def broken(*_):
        raise torch.AcceleratorError("device-side assert")

    monkeypatch.setattr(Scorer, "_forward", broken)
    with pytest.raises(torch.AcceleratorError):
        score(subject, make_items(subject, "piqa", limit=2))


def test_a_batch_that_cannot_fit_is_refused_before_it_is_tried(monkeypatch):
    subject = subjects.llama()
    items = make_items(subject, "piqa", limit=4)
    monkeypatch.setattr("versatileffn.memory.available_memory", lambda device: 2**20)
    pattern = r"a batch needs \d\.\d MiB of memory, 1\.0 MiB are available: lower --batch"
    assert score(subject, items, batch_tokens=1)
    with pytest.raises(ResourceError, match=pattern):
        score(subject, items, batch_tokens=10**6)


def meddle(subject, by):
    """A model whose answer to a request depends on what comes with it, or on chance."""
    base = subject.model.base_model
    forward = base.forward

    def meddling(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.last_hidden_state = out.last_hidden_state + by(kwargs) * torch.arange(32)
        return out

    base.forward = meddling
    return subject


def test_where_no_batch_is_right_requests_are_scored_one_by_one():
    subject = meddle(
        subjects.llama(), lambda given: 0.1 * (given.get("attention_mask") is not None)
    )
    items = make_items(subject, "piqa", limit=3)
    scorer = Scorer(subject.model, 1500)
    found = {(item.task, item.index): values for item, values in scorer.score(items)}
    assert scorer.mode == "single"
    assert "tree-full differs from single requests by" in scorer.note
    with torch.no_grad():
        assert flat(found, items) == [v for item in items for v in scorer.plain(item)]


def test_what_cannot_be_had_twice_is_not_scored():
    subject = meddle(subjects.llama(), lambda _: torch.rand(()))
    with pytest.raises(CheckpointError, match="can't be had twice alike"):
        score(subject, make_items(subject, "piqa", limit=3))


def test_all_processes_choose_the_mode_by_all_items():
    """GPT-Neo's window is wider than its short items' trees, so that they alone would share."""
    subject = foreign("gptneo")
    items = make_items(subject, limit=3)
    short = sorted(items, key=lambda item: sum(len(r.query) for r in item.requests))[:2]
    assert {r.scoring for r in task_scores._answer(subject.model, short, short).values()} == {
        "tree"
    }
    found = task_scores._answer(subject.model, short, items)
    assert {record.scoring for record in found.values()} == {"single"}
