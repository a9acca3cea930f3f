"""The console script `efficientllava`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from efficientllava import __version__
from efficientllava.commands import versions
from efficientllava.commands.serve import Threads, serve
from efficientllava.errors import UserError, disk_error

commands = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # among them may be a key
)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"efficientllava {__version__}")
        raise typer.Exit


@commands.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Prune vision-language models, ask them, verify checkpoints, score predictions."""


def path(value: str | Path) -> Path:
    """A path with ~ as the home folder: shells leave it after an equals sign."""
    from efficientllava.reading import expanded

    if not str(value).strip():
        raise typer.BadParameter("it is empty; the current folder is .")
    return expanded(value)


def _number(value: float) -> float:
    if value != value:  # NaN is within all bounds
        raise typer.BadParameter("nan is no number")
    return value


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends work as Ctrl-C does."""


def _terminate(*_: object) -> None:
    raise _Terminated


Folder = Annotated[Path, typer.Argument(help="a checkpoint or an exported model", parser=path)]


@commands.command()
def prune(  # noqa: PLR0913 every parameter is an option of the command
    model: Annotated[str, typer.Argument(help="a checkpoint's folder, or a hub id")],
    sparsity: Annotated[
        float, typer.Option(help="share of the decoder's weights that become zero, in (0, 1)")
    ] = 0.5,
    method: Annotated[
        str, typer.Option(help="how; a wrong name lists the known ones")
    ] = "efficientllava_plus",
    text: Annotated[
        str | None, typer.Option(help="calibration text, file or folder; packaged if left out")
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(help="image-text pairs in ScienceQA's layout; packaged if left out"),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="where the pruned checkpoint goes", parser=path)
    ] = Path("pruned"),
    work: Annotated[
        Path, typer.Option(help="unfinished work, databases, finished checkpoints", parser=path)
    ] = Path("work"),
    revision: Annotated[str | None, typer.Option(help="commit; needed with a hub id")] = None,
    family: Annotated[
        str, typer.Option(help="auto, or generic: find the decoder of an unknown type by structure")
    ] = "auto",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N", show_default="cpu")
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(help="begin no round or correction that would end later")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="a parameter, e.g. obs.pattern=2:4; give it repeatedly"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="estimate memory, disk and time; change nothing")
    ] = False,
) -> None:
    """Prune a model. After an interruption, run the same command again: it resumes."""
    from efficientllava.commands.prune import Request, dry, run

    options = (method, sparsity, text, pairs, work, device, max_seconds, tuple(set_ or ()), family)
    request = Request(model, revision, *options)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        if dry_run:
            dry(request)
        else:
            run(request, output)
    except KeyboardInterrupt as end:
        typer.echo("interrupted: the same command resumes", err=True)
        raise typer.Exit(143 if isinstance(end, _Terminated) else 130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@commands.command()
def ask(
    folder: Folder,
    image: Annotated[str, typer.Argument(help="an image file, or - for none")],
    question: Annotated[
        str, typer.Argument(help="the question, e.g. 'How many shapes are there?'")
    ],
    choice: Annotated[list[str] | None, typer.Option(help="an option; give it repeatedly")] = None,
    hint: Annotated[str, typer.Option(help="context of the question")] = "",
    raw: Annotated[bool, typer.Option(help="QUESTION is the whole prompt")] = False,
    new_tokens: Annotated[int, typer.Option(min=1, help="tokens generated at most")] = 16,
    threads: Threads = 1,
) -> None:
    """Answer a question about an image: exported graphs by the first runtime that can be used,
    checkpoints, packed ones too, by PyTorch."""
    from efficientllava.data.prompts import format_prompt
    from efficientllava.export.assistant import answer

    text = question if raw else format_prompt(question, choice or [], hint)
    picture = None if image == "-" else path(image)
    if (folder / "prefill.onnx").is_file():
        typer.echo(answer(folder, picture, text, None, threads, new_tokens, raw))
        return
    from efficientllava.commands.ask import checkpoint_reply

    typer.echo(checkpoint_reply(folder, picture, text, raw, new_tokens, threads))


@commands.command()
def verify(
    folder: Annotated[
        Path, typer.Argument(help="a checkpoint, a database or proxy data", parser=path)
    ],
) -> None:
    """Check that a folder is as it was written: its digests, and a pruned checkpoint's zeros."""
    from efficientllava.commands.verify import verify as run

    typer.echo(run(folder))


@commands.command()
def pack(
    folder: Annotated[Path, typer.Argument(help="a pruned checkpoint", parser=path)],
    out: Annotated[Path, typer.Argument(help="output folder; it must not exist", parser=path)],
    dtype: Annotated[
        str | None, typer.Option(help="int8 rounds packed weights; lossless if left out")
    ] = None,
) -> None:
    """Make a pruned checkpoint smaller: its pruned matrices without their zeros."""
    from efficientllava.commands.pack import pack as run

    typer.echo(run(folder, out, dtype))


@commands.command()
def unpack(
    folder: Annotated[Path, typer.Argument(help="a packed checkpoint", parser=path)],
    out: Annotated[Path, typer.Argument(help="output folder; it must not exist", parser=path)],
) -> None:
    """Write the checkpoint that a packed one was made from: the tensors bit by bit, but those that
    int8 rounded; without digests.json."""
    from efficientllava.commands.pack import unpack as run

    typer.echo(run(folder, out))


Data = Annotated[str, typer.Option(help="the benchmark's folder of official files, or a hub id")]
Split = Annotated[str | None, typer.Option(help="its split; the published one when not given")]
Style = Annotated[str | None, typer.Option(help="ScienceQA: llava_v1_5 or llava_sqa")]


@commands.command()
def score(  # noqa: PLR0913 every parameter is an option of the command
    benchmark: Annotated[str, typer.Argument(help="docs/evaluate.md names them")],
    predictions: Annotated[
        list[Path], typer.Argument(help="official prediction file", parser=path)
    ],
    data: Data,
    split: Split = None,
    style: Style = None,
    output: Annotated[
        Path | None, typer.Option(help="write the scores as JSON", parser=path)
    ] = None,
    submission: Annotated[
        Path | None, typer.Option(help="VizWiz: write the evaluation server's file", parser=path)
    ] = None,
    judge: Annotated[str | None, typer.Option(help="the judge's model")] = None,
    judge_url: Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint")] = None,
    judge_cache: Annotated[Path, typer.Option(help="where replies are kept", parser=path)] = Path(
        ".work/judge"
    ),
    judgements: Annotated[
        Path | None, typer.Option(help="folder for the judge's grades or reviews", parser=path)
    ] = None,
    runs: Annotated[int | None, typer.Option(min=1, help="judgements of each answer")] = None,
    parallel: Annotated[int, typer.Option(min=1, max=1024, help="requests at the same time")] = 8,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=86400, callback=_number, help="seconds of a request")
    ] = 60.0,
    attempts: Annotated[int, typer.Option(min=1, help="tries of a request")] = 6,
) -> None:
    """Score predictions without a model, as the benchmark's official script does.

    ScienceQA's predictions are scored alike in either style.
    """
    from efficientllava.benchmarks.judge.client import JudgeSettings
    from efficientllava.benchmarks.score_command import JudgeOptions, Request, run

    settings = None
    if judge is not None:
        settings = JudgeSettings(judge, judge_url, parallel, attempts, timeout)
    run(
        Request(benchmark, predictions, data, split, style, output, submission),
        JudgeOptions(settings, judge_cache, runs, judgements),
    )


@commands.command()
def prompts(
    benchmark: Annotated[str, typer.Argument(help="a benchmark, as for `score`")],
    data: Data,
    split: Split = None,
    style: Style = None,
) -> None:
    """Print every full prompt of a benchmark as JSON lines of {question_id, prompt}."""
    import json

    from efficientllava.benchmarks.base import full_prompt, read_records
    from efficientllava.registry import BENCHMARKS

    chosen = BENCHMARKS[benchmark]
    for record in read_records(chosen, data, split, style):
        line = {"question_id": record.id, "prompt": full_prompt(chosen, record, style)}
        typer.echo(json.dumps(line))


@commands.command()
def parameters() -> None:
    """Print every parameter of params.yaml with its bounds and default, as Markdown."""
    from efficientllava.report.parameters_page import parameters_page

    typer.echo(parameters_page())


@commands.command()
def families() -> None:
    """List the families of models that can be pruned."""
    from efficientllava.commands.families import print_families

    print_families()


@commands.command()
def doctor() -> None:
    """Report versions, processor, devices, memory, disk and servers; exit 2 if one is unusable."""
    from efficientllava.commands.doctor import findings

    section, bad = "", 0
    for finding in findings():
        if finding.section != section:
            section = finding.section
            typer.echo(section)
        mark = {"ok": "  ", "note": "- ", "bad": "x "}[finding.state]
        typer.echo(f"  {mark}{finding.name:<16} {finding.value}")
        bad += finding.state == "bad"
    if bad:
        raise UserError(f"{bad} of these keep it from working", "the lines marked x")


commands.command()(serve)
commands.add_typer(versions.commands)


def app() -> None:
    """Run the console script: exit code 2 and a message for errors that the user can fix."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("NM_DISABLE_ANALYTICS", "1")
    try:
        commands()
    except UserError as error:
        _end(error)
    except OSError as error:  # of a library that writes past efficientllava.files
        if (about_disk := disk_error(error)) is None:
            raise
        _end(about_disk)
    except ModuleNotFoundError as error:
        from efficientllava.extras import missing_package

        if (message := missing_package(error)) is None:
            raise
        _end(message)


def _end(error: UserError) -> None:
    typer.echo(f"error: {error}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    app()
