"""From text to batches: corpora, tokenizers, token shards, packed windows."""
