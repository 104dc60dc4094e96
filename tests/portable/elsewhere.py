"""Run by a Python that lacks the package: load exported models, compare, save again, load again.

    python elsewhere.py ROOT [--block]

ROOT has a folder for each case, with `out` (the export) and `expected.pt`; `again` is written. With
--block the package can't be imported, wherever it is installed. Prints a line of JSON.
"""

import json
import sys
from pathlib import Path

if "--block" in sys.argv:
    sys.modules["versatileffn"] = None

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoTokenizer


def compare(model, expected: dict) -> float:
    """The largest difference of logits; greedy generation must be the same."""
    with torch.no_grad():
        logits = model(expected["ids"])[0]
    if expected["tokens"] is not None:
        tokens = model.generate(expected["ids"], max_new_tokens=6, do_sample=False)
        assert tokens.tolist() == expected["tokens"].tolist(), "other tokens were generated"
    return (logits - expected["logits"]).abs().max().item()


def look(case: Path) -> dict:
    """What one exported model does here."""
    expected = torch.load(case / "expected.pt")
    auto = getattr(transformers, expected["auto"])
    out, again = str(case / "out"), str(case / "again")
    config = AutoConfig.from_pretrained(out, trust_remote_code=True)
    model = auto.from_pretrained(out, trust_remote_code=True).eval()
    found = {"difference": compare(model, expected), "module": type(model).__module__}
    base = AutoModel.from_pretrained(out, trust_remote_code=True)
    assert type(base).__module__ == type(config).__module__ == type(model).__module__
    model.save_pretrained(again)
    reloaded = auto.from_pretrained(again, trust_remote_code=True).eval()
    found["after saving again"] = compare(reloaded, expected)
    found["auto_map"] = json.loads((case / "again" / "config.json").read_text())["auto_map"]
    if expected["text"] is not None:
        found["text ids"] = AutoTokenizer.from_pretrained(out)(expected["text"])["input_ids"]
    return found


if __name__ == "__main__":
    root = Path(sys.argv[1])
    found = {case.name: look(case) for case in sorted(root.iterdir()) if (case / "out").is_dir()}
    print(json.dumps({"transformers": transformers.__version__, "cases": found}))
