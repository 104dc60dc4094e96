"""The task's questions as a token folder, so that the trainer reads them like any text."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from versatileffn.data.meta import META_FILE, SplitMeta, TokenMeta, Windows
from versatileffn.data.shards import Shard
from versatileffn.data.tokenizers import TOKENIZER_FOLDER, save_tokenizer
from versatileffn.errors import DataError
from versatileffn.provenance import versions
from versatileffn.reproduce.depth.task import ANSWER, EOS_TOKEN, DepthTask
from versatileffn.workspace.folder import new_folder
from versatileffn.workspace.manifest import digests

SOURCE = "k steps of rule 110"


def write_questions(
    task: DepthTask, splits: Mapping[str, np.ndarray], seed: int, target: Path
) -> None:
    """Write a token folder whose windows are questions, in the order given.

    Args:
        task: has the vocabulary.
        splits: questions by name of the split, each [N, task.window].
        seed: with which they were drawn.
        target: the folder to make.
    """
    with new_folder(target, META_FILE, error_class=DataError) as folder:
        described = save_tokenizer(tokenizer(task), folder, folder.parent)
        named = digests(folder / TOKENIZER_FOLDER)
        files = {f"{TOKENIZER_FOLDER}/{name}": digest for name, digest in named.items()}
        sizes = {}
        for name, windows in splits.items():
            with Shard(folder, f"{name}/00000.ds", 2) as shard:
                shard.add(windows.ravel().tolist())
                shard.end_document(windows.size * (task.bits + 1))
                files |= shard.finish()
            sizes[name] = SplitMeta(shard.documents, shard.tokens, shard.bytes)
        TokenMeta(
            tokenizer=described,
            splits=sizes,
            source=SOURCE,
            seed=seed,
            token_bytes=2,
            settings={"bits": task.bits, "most": task.most},
            versions=versions("tokenizers", "transformers", "numpy"),
            files=files,
            windows=Windows(task.window, ANSWER, shuffled=False),
        ).save(folder)


def tokenizer(task: DepthTask) -> PreTrainedTokenizerFast:
    """One token for each word of the vocabulary."""
    words = {token: index for index, token in enumerate(task.vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token=EOS_TOKEN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS_TOKEN)
