"""What the stages measure on."""

import dataclasses
from pathlib import Path

import pytest

from versatileffn.data.packed import PackedDataset
from versatileffn.data.tokenize import tokenize_corpus
from versatileffn.reproduce.arms import PAPER, THE_BASE
from versatileffn.reproduce.protocol import SCALES, protocol
from versatileffn.reproduce.steps import Context, train_config, usage_batches

SMOKE = protocol("smoke")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text(
        "\n\n".join(f"def f{i}(x): return x + {i}" for i in range(3000))
    )
    tokenize_corpus(
        folder, folder / "tokens", vocab_size=300, document_separator="\n\n", val_fraction=0.2
    )
    return folder / "tokens"


@pytest.mark.parametrize("usage_windows", [1, 7, 8, 20, 64, 10**6])
def test_use_is_measured_on_windows_from_all_over_the_split(tokens, usage_windows):
    scale = dataclasses.replace(SMOKE, usage_windows=usage_windows)
    dataset = PackedDataset(tokens, "val", scale.seq_len)
    batches = list(usage_batches(Context(scale, tokens, seed=0)))
    used = [tuple(window.tolist()) for batch in batches for window in batch]
    everywhere = [tuple(dataset[i]["input_ids"].tolist()) for i in range(len(dataset))]
    assert len(everywhere) > 64, "more windows than are asked for, but in the last case"
    wanted = min(usage_windows, len(everywhere))
    places = [index * len(everywhere) // wanted for index in range(wanted)]
    assert used == [everywhere[place] for place in places]


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("arm", [THE_BASE, PAPER[0]])
def test_no_evaluation_is_wasted_just_before_the_last(tmp_path, name, arm):
    scale = protocol(name)
    start = None if arm.start is None else tmp_path
    run = train_config(Context(scale, tmp_path, 0), arm, start, tmp_path).run
    every, steps = run.eval_steps, run.max_steps
    assert len({*range(every, steps, every), steps}) <= scale.evaluations
    assert run.save_steps % run.logging_steps == 0
