"""The console script: ask a model, score predictions, verify a checkpoint, list the parameters.

The pipeline itself is run by `make demo`, `python -m flows.pipeline` or `dvc repro`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from efficientllava.errors import UserError

commands = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # among them may be a key
)

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
    from efficientllava.data.prompts import format_prompt
    from efficientllava.export.assistant import Prompt, answer

    text = question if raw else format_prompt(question, choice or [], hint)
    picture = None if image == "-" else Path(image)
    if (folder / "prefill.onnx").is_file():
        typer.echo(answer(folder, picture, text, threads=threads, new_tokens=new_tokens))
        return
    import torch

    from efficientllava.export.parity import reference_answer
    from efficientllava.models.checkpoint import load_model, load_processor
    from efficientllava.models.families import require_family

    torch.set_num_threads(threads)
    model, processor = load_model(folder), load_processor(folder)
    image_token = require_family(model.config.model_type).image_token
    if picture is not None and image_token not in text:
        text = f"{image_token}\n{text}"
    tokens = reference_answer(model, processor, Prompt(text, picture), new_tokens).tokens
    typer.echo(processor.tokenizer.decode(tokens, skip_special_tokens=True).strip())


@commands.command()
def verify(folder: Folder) -> None:
    """Check that a pruned checkpoint loads, is finite and has the zeros and sizes of its record."""
    from efficientllava.files import read_json
    from efficientllava.models.checkpoint import load_model
    from efficientllava.models.families import adapter_for
    from efficientllava.pruning import sequential
    from efficientllava.pruning.structured import structured as smaller

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


Data = Annotated[str, typer.Option(help="the benchmark's folder of official files, or a hub id")]
Split = Annotated[str | None, typer.Option(help="its split; the published one when not given")]
Style = Annotated[str | None, typer.Option(help="ScienceQA: llava_v1_5 or llava_sqa")]


@commands.command()
def score(
    benchmark: Annotated[
        str, typer.Argument(help="scienceqa, scienceqa_img, vizwiz, mmvet or llava_bench")
    ],
    predictions: Annotated[list[Path], typer.Argument(help="official prediction file")],
    data: Data,
    split: Split = None,
    style: Style = None,
    output: Annotated[Path | None, typer.Option(help="write the scores as JSON")] = None,
    submission: Annotated[
        Path | None, typer.Option(help="VizWiz: write the evaluation server's file")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="the judge's model")] = None,
    judge_url: Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint")] = None,
    judge_cache: Annotated[Path, typer.Option(help="where replies are kept")] = Path(".work/judge"),
    judgements: Annotated[
        Path | None, typer.Option(help="folder for the judge's grades or reviews")
    ] = None,
    runs: Annotated[int | None, typer.Option(min=1, help="judgements of each answer")] = None,
    parallel: Annotated[int, typer.Option(min=1, help="requests at the same time")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds to wait for a reply")] = 60.0,
    attempts: Annotated[int, typer.Option(min=1, help="tries of a request")] = 6,
) -> None:
    """Score predictions without a model, as the benchmark's official script does.

    The style decides nothing about scores: both are read by the same script.
    """
    from rich.console import Console

    from efficientllava.benchmarks import predictions as files
    from efficientllava.benchmarks import scoring, vizwiz
    from efficientllava.benchmarks.catalogue import benchmark_named, read_records
    from efficientllava.benchmarks.judge import Judge, JudgeSettings, require_key
    from efficientllava.benchmarks.table import score_table
    from efficientllava.files import write_json

    chosen = benchmark_named(benchmark)
    chosen.style(style)
    judging = None
    if judge is not None:
        require_key()
        settings = JudgeSettings(judge, judge_url, parallel, attempts, timeout)
        judging = scoring.Judging(Judge(settings, judge_cache), runs or 1)
    if submission is not None:
        if chosen.name != "vizwiz" or len(predictions) != 1:
            raise UserError("a submission is made of one file of answers to vizwiz", "--submission")
        photos = [
            each for each in read_records(chosen, data, split) if isinstance(each, vizwiz.Photo)
        ]
        read = files.read_predictions(predictions[0])
        texts = scoring.spelled_answers(chosen, photos, read)
        write_json(submission, vizwiz.submission(photos, texts))
        typer.echo(f"{submission}: {len(photos)} answers for the evaluation server")
        if not all(photo.answers for photo in photos):
            return
    outcome = scoring.score_files(chosen, predictions, data, split, judging, runs)
    if judgements is not None:
        for name, value in outcome.judgements.items():
            if name.endswith(".jsonl"):
                files.write_lines(judgements / name, value)
            else:
                write_json(judgements / name, value)
    Console().print(score_table(chosen, outcome.scores))
    if malformed := outcome.scores.get("malformed"):
        typer.echo(f"note: {malformed} malformed replies of the judge, handled as officially")
    for note in outcome.scores["notes"]:
        typer.echo(f"note: {note}")
    if output is not None:
        write_json(output, outcome.scores)


@commands.command()
def prompts(
    benchmark: Annotated[str, typer.Argument(help="a benchmark, as for `score`")],
    data: Data,
    split: Split = None,
    style: Style = None,
) -> None:
    """Print every full prompt of a benchmark as JSON lines of {question_id, prompt}."""
    import json

    from efficientllava.benchmarks.catalogue import benchmark_named, full_prompt, read_records

    chosen = benchmark_named(benchmark)
    for record in read_records(chosen, data, split, style):
        line = {"question_id": record.id, "prompt": full_prompt(chosen, record, style)}
        typer.echo(json.dumps(line))


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
