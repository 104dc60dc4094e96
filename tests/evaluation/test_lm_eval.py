"""A saved checkpoint under lm_eval's `hf` model: the same scores there as here.

lm_eval loads models through Transformers' Auto classes, which know ours once `versatileffn` is
imported. So the command that is run is lm_eval's own, in a Python that imports it first.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from versatileffn.data.default_corpus import read_topics, standard_library
from versatileffn.data.tokenizers import train_bpe
from versatileffn.evaluation.perplexity import perplexity
from versatileffn.evaluation.tasks.requests import Item, Request
from versatileffn.evaluation.tasks.scoring import Scorer
from versatileffn.evaluation.tasks.tokenizer import RequestTokenizer
from versatileffn.ffn.config import Versatile
from versatileffn.models.family import VersatileLlamaForCausalLM, reuse_config

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm_eval isn't installed"
)

CONTEXT = 64  # tokens
CHOICES, ITEMS = 4, 24

MULTIPLE_CHOICE = """
task: own_choices
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_target: label
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""
ROLLING = """
task: own_text
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: bits_per_byte
"""


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    text = " ".join(read_topics().values())
    if not text:
        text = (standard_library() / "this.py").read_text() * 40
    found = re.findall(r"[A-Z][a-z]+(?: [a-z]+){7,14}[.]", text)
    return list(dict.fromkeys(found))[: 8 * ITEMS]


@pytest.fixture(scope="module")
def folder(sentences, tmp_path_factory) -> Path:
    """Data, tasks, and a model with its tokenizer, as lm_eval wants them."""
    root = tmp_path_factory.mktemp("lm_eval")
    halves = [(" ".join(s.split()[:5]), " ".join(s.split()[5:])) for s in sentences]
    documents = []
    for index in range(ITEMS):
        label = index % CHOICES
        endings = [halves[(index + 7 * (k + 1)) % len(halves)][1] for k in range(CHOICES)]
        endings[label] = halves[index][1]
        documents.append({"context": halves[index][0], "choices": endings, "label": label})
    write_lines(root / "choices.jsonl", documents)
    texts = [" ".join(sentences[start : start + 9]) for start in (0, 9, 18)] + ["Grüße 🎈 \n x"]
    write_lines(root / "texts.jsonl", [{"text": text} for text in texts])
    (root / "tasks").mkdir()
    for name, template, data in (
        ("choices", MULTIPLE_CHOICE, "choices.jsonl"),
        ("text", ROLLING, "texts.jsonl"),
    ):
        (root / "tasks" / f"{name}.yaml").write_text(template.format(data=root / data))

    tokenizer = train_bpe([*texts, *sentences], 600)
    llama = LlamaConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=600,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = VersatileLlamaForCausalLM(reuse_config(llama, Versatile()))
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    return root


def write_lines(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Path:
    """What lm_eval's own command line writes."""
    arguments = {
        "--model": "hf",
        "--model_args": f"pretrained={folder / 'model'},dtype=float32",
        "--tasks": "own_choices,own_text",
        "--include_path": str(folder / "tasks"),
        "--device": "cpu",
        "--batch_size": "4",
        "--output_path": str(folder / "out"),
    }
    words = [part for pair in arguments.items() for part in pair]
    source = str(Path(__file__).parents[2] / "src")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "versatileffn.run", "lm_eval", "run", *words, "--log_samples"],
        env=environment, cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return next((folder / "out").iterdir())


def their_results(theirs: Path) -> dict:
    return json.loads(next(theirs.glob("results_*.json")).read_text())["results"]


def test_choices_have_the_same_log_likelihoods_and_score(folder, theirs) -> None:
    model = VersatileLlamaForCausalLM.from_pretrained(folder / "model").eval()
    tokenizer = saved_tokenizer(folder)
    words = RequestTokenizer(tokenizer)
    items = []
    for index, document in enumerate(read_lines(folder / "choices.jsonl")):
        context, requests = words.encode(document["context"]), []
        for choice in document["choices"]:
            targets = words.encode(f" {choice}")
            query = [*context, *targets[:-1]]
            assert len(query) <= CONTEXT
            requests.append(Request(tuple(query), tuple(targets), len(choice) + 1, 0))
        items.append(Item("own", index, document["label"], "", tuple(requests)))
    ours = {item.index: scores for item, scores in Scorer(model, 1024).score(items)}

    samples = {s["doc_id"]: s for s in read_lines(next(theirs.glob("samples_own_choices_*")))}
    for index, scores in ours.items():
        logged = [float(response[0][0]) for response in samples[index]["resps"]]
        assert logged == pytest.approx(scores, rel=1e-5)
    right = [max(range(CHOICES), key=s.__getitem__) == items[i].label for i, s in ours.items()]
    found = their_results(theirs)["own_choices"]["acc,none"]
    assert found == pytest.approx(sum(right) / ITEMS)
    assert 0 < found < 1


def test_bits_per_byte_are_those_of_disjoint_windows(folder, theirs) -> None:
    model = VersatileLlamaForCausalLM.from_pretrained(folder / "model").eval()
    texts = [record["text"] for record in read_lines(folder / "texts.jsonl")]
    tokenizer = saved_tokenizer(folder)
    ours = perplexity(model, tokenizer, texts, window=CONTEXT, stride=CONTEXT)
    found = their_results(theirs)["own_text"]["bits_per_byte,none"]
    assert found == pytest.approx(ours.bits_per_byte, rel=1e-6)
    assert ours.tokens > 3 * CONTEXT  # so that windows matter
    assert found != pytest.approx(
        perplexity(model, tokenizer, texts, CONTEXT, 16).bits_per_byte, rel=1e-4
    )


def saved_tokenizer(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "model")
