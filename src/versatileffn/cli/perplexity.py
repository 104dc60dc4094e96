"""`versatileffn perplexity`: how well a model predicts any text."""

from itertools import chain
from typing import Annotated

import typer

from versatileffn.cli.options import Bf16Option, choose_device, precision
from versatileffn.cli.record import JsonOption, OverwriteOption, RecordFile


def perplexity_command(
    model: Annotated[str, typer.Argument(help="Checkpoint: a folder, hub id or .gguf file.")],
    text: Annotated[
        list[str],
        typer.Argument(
            help="Texts: what `versatileffn tokenize` takes (.txt, .jsonl, .parquet, a folder, …)."
        ),
    ],
    window: Annotated[
        int | None,
        typer.Option(help="Most tokens that a prediction reads.  [default: the model's, or 2048]"),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens by which the window moves.  [default: half a window]"),
    ] = None,
    text_field: Annotated[
        str | None, typer.Option(help="Field (JSONL) or column (Parquet) with the text.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many documents of each text.")
    ] = None,
    bf16: Bf16Option = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="Another tokenizer than the model's, see `tokenize`.")
    ] = None,
    json: JsonOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Perplexity and bits per byte of texts, each token scored once, with a sliding window.

    Each document is read on its own, after the tokenizer's bos (else eos) token.
    """
    from rich.console import Console

    from versatileffn.data.corpus import find_corpus
    from versatileffn.evaluation.perplexity import check_window, perplexity
    from versatileffn.evaluation.tasks.loading import load_subject, model_sha256
    from versatileffn.evaluation.tasks.tokenizer import RequestTokenizer
    from versatileffn.models.checkpoint import quiet_transformers
    from versatileffn.provenance import device_name

    out = RecordFile(json, "perplexity", [model, tokenizer, *text], overwrite)
    corpora = [find_corpus(t, text_field=text_field, limit_documents=limit) for t in text]

    documents = chain.from_iterable(piece for corpus in corpora for piece in corpus.pieces())
    subject = load_subject(model, precision(bf16), choose_device(None), tokenizer)
    check_window(subject.model, window, stride)
    with quiet_transformers(), Console(stderr=True).status("reading") as status:
        result = perplexity(
            subject.model, subject.tokenizer, documents, window, stride,
            progress=lambda tokens: status.update(f"{tokens:,} tokens scored"),
        )  # fmt: skip
    typer.echo(
        f"{result.nats_per_token:.4f} nats/token  perplexity {result.perplexity:.4g}  "
        f"{result.bits_per_byte:.4f} bits/byte\n"
        f"{result.tokens:,} tokens, {result.bytes:,} bytes, {result.texts:,} documents; window "
        f"{result.window}, stride {result.stride}"
    )
    if result.uncertain:
        typer.echo(
            f"note: at {result.uncertain} places in long documents the tokens may not be those of "
            "the whole document"
        )
    if json is None:  # digests of weights take a while
        return
    out.write(
        {
            "device": device_name(subject.model.device),
            "dtype": "bfloat16" if bf16 else "float32",
            "model": model,
            "model_sha256": model_sha256(subject.model),
            "tokenizer_sha256": RequestTokenizer(subject.tokenizer).sha256(),
            "texts": [corpus.source for corpus in corpora],
            "nats_per_token": result.nats_per_token,
            "perplexity": result.perplexity,
            "bits_per_byte": result.bits_per_byte,
            "tokens": result.tokens,
            "bytes": result.bytes,
            "documents": result.texts,
            "uncertain_places": result.uncertain,
            "window": result.window,
            "stride": result.stride,
        }
    )
