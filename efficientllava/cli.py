"""The console script: ask a model, verify a pruned checkpoint, list the parameters.

The pipeline itself is run by `make demo`, `python -m flows.pipeline` or `dvc repro`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from efficientllava.errors import UserError

commands = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

Folder = Annotated[Path, typer.Argument(help="a checkpoint or an exported model")]


@commands.command()
def ask(
    folder: Folder,
    image: Annotated[str, typer.Argument(help="an image file, or - for none")],
    question: Annotated[str, typer.Argument(help="the question, e.g. 'Which shape is red?'")],
    choice: Annotated[list[str] | None, typer.Option(help="an option; give it repeatedly")] = None,
    hint: Annotated[str, typer.Option(help="context of the question")] = "",
    raw: Annotated[bool, typer.Option(help="QUESTION is the whole prompt")] = False,
    new_tokens: Annotated[int, typer.Option(min=1, help="tokens generated at most")] = 16,
    threads: Annotated[int, typer.Option(min=1, help="threads")] = 1,
) -> None:
    """Answer a question about an image: exported models by DeepSparse or ONNX Runtime, checkpoints
    by PyTorch."""
    from efficientllava.data.prompts import IMAGE_TOKEN, format_prompt
    from efficientllava.export.assistant import Prompt, answer

    text = question if raw else format_prompt(question, choice or [], hint)
    picture = None if image == "-" else Path(image)
    if (folder / "prefill.onnx").is_file():
        typer.echo(answer(folder, picture, text, threads=threads, new_tokens=new_tokens))
        return
    import torch

    from efficientllava.export.parity import reference_answer
    from efficientllava.models.checkpoint import load_model, load_processor

    torch.set_num_threads(threads)
    model, processor = load_model(folder), load_processor(folder)
    if picture is not None and IMAGE_TOKEN not in text:
        text = f"{IMAGE_TOKEN}\n{text}"
    tokens = reference_answer(model, processor, Prompt(text, picture), new_tokens).tokens
    typer.echo(processor.tokenizer.decode(tokens, skip_special_tokens=True).strip())


@commands.command()
def verify(folder: Folder) -> None:
    """Check that a pruned checkpoint loads, is finite and has the zeros and sizes of its record."""
    from efficientllava.files import read_json
    from efficientllava.models.adapter import adapter_for
    from efficientllava.models.checkpoint import load_model
    from efficientllava.pruning import sequential, smaller

    record = read_json(folder / "pruning.json")
    try:
        rows, policy = record["matrices"], record["policy"]
        levels = {row["name"]: row["level"] for row in rows}
        told = f"{record['method']} at {record['ratio']:g}"
    except (KeyError, TypeError) as error:
        raise UserError(f"lacks {error}", where=str(folder / "pruning.json")) from error
    if levels != policy:
        raise UserError("its rows do not follow its policy", where=str(folder / "pruning.json"))
    adapter = adapter_for(load_model(folder))
    if (structure := record.get("structure")) is not None:
        smaller.verify_smaller(adapter, rows, structure)
        share = smaller.removed_share(rows, structure)
        typer.echo(
            f"{folder}: {told}, {share:.4%} of the decoder's weights are gone, "
            f"{len(adapter.blocks)} blocks with {len(rows)} matrices of the recorded sizes, "
            "all weights finite"
        )
        return
    sequential.verify(adapter, rows)
    share = sequential.achieved_sparsity(rows)
    typer.echo(
        f"{folder}: {told}, {len(rows)} matrices with the zeros of their policy "
        f"({share:.4%} of the weights), all weights finite"
    )


@commands.command()
def parameters() -> None:
    """Print every parameter of params.yaml with its bounds and default, as Markdown."""
    from efficientllava.report.parameters_page import parameters_page

    typer.echo(parameters_page())


def app() -> None:
    """Run the console script: exit code 2 and a message for what the user can mend."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("NM_DISABLE_ANALYTICS", "1")
    try:
        commands()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    app()
