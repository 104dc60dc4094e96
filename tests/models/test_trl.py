"""TRL's trainers, where TRL is installed (`pip install trl`); `portable/walk.py` installs it."""

import pytest

from portable import trainers
from support.models import VARIANTS

pytest.importorskip("trl", reason="TRL isn't installed")


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.filterwarnings("ignore:a loss that is computed outside")
def test_supervised_fine_tuning(settings, tmp_path):
    assert trainers.sft(str(tmp_path), **settings).startswith("works")


@pytest.mark.parametrize("tool", trainers.TOOLS)
def test_a_few_steps(tool, tmp_path):
    assert trainers.TOOLS[tool](str(tmp_path)).startswith("works")
