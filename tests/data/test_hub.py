"""Data sets of the Hugging Face Hub are read like files, and their absence is one line."""

from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from versatileffn.data.corpus import find_corpus
from versatileffn.data.readers import HubReader
from versatileffn.errors import DataError


def test_hub_id_is_recognised_and_its_absence_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    found = find_corpus("no-such-owner/no-such-data", hub_config="small", hub_split="test")
    assert found.source == "no-such-owner/no-such-data/small/test"
    with pytest.raises(DataError, match="neither a path here nor a data set") as caught:
        list(found.pieces()[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_reader_on_a_data_set_folder(
    streaming: bool, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` loads a local folder as it does one of the Hub; the tasks share all rows."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    pq.write_table(
        pa.table({"n": range(len(texts)), "text": texts}), tmp_path / "set" / "train.parquet"
    )
    reader = HubReader(str(tmp_path / "set"), None, "train", "text", streaming)
    assert list(reader.run()) == texts
    shares = [list(reader.run(rank, 3)) for rank in range(3)]
    assert sorted(chain.from_iterable(shares)) == sorted(texts)
    assert all(shares)
    if not streaming:  # a stretch each: whoever reads every third row decodes them all
        assert list(chain.from_iterable(shares)) == texts
        with pytest.raises(DataError, match=f"row {len(texts) // 3}.*no field 'body'"):
            list(HubReader(str(tmp_path / "set"), None, "train", "body", False).run(1, 3))
    wrong = HubReader(str(tmp_path / "set"), None, "train", "body", streaming)
    with pytest.raises(DataError, match=r"row 0.*no field 'body'"):
        list(wrong.run())
    with pytest.raises(DataError, match="hub-split"):
        list(HubReader(str(tmp_path / "set"), None, "nope", "text", streaming).run())
