"""docs/families.md shows what the committed run found, for every family and every property."""

import json
from pathlib import Path

import pytest
from transformers import ArceeConfig, ArceeForCausalLM, AutoModelForCausalLM

import versatileffn as vf
from support.family_table import BEGIN, DOCS, END, properties, render
from support.models import SHAPE
from versatileffn.errors import CheckpointError
from versatileffn.models.config import config_class, register_configs
from versatileffn.models.family import make_classes
from versatileffn.models.table import FAMILIES, Family, family_of

RENEW = "run pytest tests/models/test_families.py --write-families"
PROPERTIES = properties(Path(__file__).with_name("test_families.py"))
RECORD = json.loads((DOCS / "families.json").read_text("utf-8"))


def test_the_table_is_the_records():
    page = (DOCS / "families.md").read_text("utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0] == render(RECORD), RENEW


def test_the_record_covers_every_family_and_property():
    assert list(RECORD["families"]) == list(FAMILIES), RENEW
    for family, found in RECORD["families"].items():
        assert sorted(found) == sorted(PROPERTIES), f"{family}: {RENEW}"
        lacking = {test for test, outcome in found.items() if outcome not in ("passed", "skipped")}
        assert not lacking, family
        assert {test for test, outcome in found.items() if outcome == "skipped"} <= {"classifies"}


def test_an_unknown_family_names_the_known_ones_and_the_file():
    with pytest.raises(CheckpointError, match=r"'mamba'.*llama, .*stablelm.*models/table\.py"):
        family_of("mamba")


@pytest.fixture
def without_arcee(monkeypatch):
    """As if nobody had written its row."""
    made = config_class, make_classes
    for function in made:
        function.cache_clear()
    monkeypatch.delitem(FAMILIES, "arcee")
    yield
    for function in made:
        function.cache_clear()


def test_a_row_is_all_that_a_family_needs(without_arcee, monkeypatch, tmp_path):
    dense = ArceeForCausalLM(ArceeConfig(**SHAPE)).eval()
    dense.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"'arcee' isn't supported.*models/table\.py"):
        vf.upcycle(tmp_path)
    monkeypatch.setitem(FAMILIES, "arcee", Family("Arcee", proj=("up_proj",), gated=False))
    register_configs()
    model, receipt = vf.upcycle(tmp_path)
    assert type(model).__name__ == "VersatileArceeForCausalLM"
    assert receipt.logit_difference == 0
    model.save_pretrained(tmp_path / "out")
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "out")) is type(model)
