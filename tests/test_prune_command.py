"""`efficientllava prune`: killed and resumed, bad input, Ctrl-C, the dry run, its table and log."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from efficientllava import cli
from efficientllava.commands import prune as prune_command
from efficientllava.commands.estimate import Estimate
from efficientllava.errors import UserError
from efficientllava.files import folder_digest, write_json
from efficientllava.models.checkpoint import save_checkpoint
from efficientllava.parameters import Parameters
from efficientllava.progress import Event
from efficientllava.registry import METHODS
from efficientllava.terminal import bar, print_rows
from efficientllava.work_folder import locked
from tests.models.families import TINY

ROOT = Path(__file__).parents[1]
WORDS = " ".join(f"w{number % 50}" for number in range(800))
FEW_ROUNDS = [
    *("--set", "search.candidates=3", "--set", "search.survivors=1", "--set", "search.rounds=2")
]
FAST = [
    *("--set", "machine.workers=1", "--set", "search.projector_steps=1"),
    *("--set", "proxy.segments=3", "--set", "proxy.segment_length=8", "--set", "proxy.pairs=4"),
]
KILLED = """
import json, os, shutil, signal, sys
from contextlib import contextmanager
from efficientllava import cli, files
from efficientllava.commands import prune as prune_command

def command(arguments, moment, log):
    'Runs the command in a process of its own, which kills itself at a moment.'
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.argv = ["efficientllava", *arguments]
    output = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    seen = []
    def die():
        os.kill(os.getpid(), signal.SIGKILL)
    if moment == ["saving"]:
        def copyfile(source, target):
            open(target, "wb").write(b"half")
            die()
        files.shutil.copyfile = copyfile
    elif moment:
        shown = prune_command.shown
        @contextmanager
        def killing(*others):
            with shown(*others) as progress:
                def see(event):
                    progress(event)
                    if [event.name, event.done, event.values.get("round")] == moment:
                        die()
                yield see
        prune_command.shown = killing
    try:
        cli.app()
    except SystemExit as end:
        os._exit(end.code or 0)
    os._exit(9)

arguments, other, moments, log = json.loads(sys.argv[1])
assert command(other, None, log + "-undisturbed") == 0
for number, moment in enumerate(moments):
    assert command(arguments, moment, f"{log}-{number}") == -signal.SIGKILL, moment
assert command(arguments, None, log + "-resumed") == 0
assert command(arguments, None, log + "-again") == 0
"""
MOMENTS: list[list[Any]] = [
    ["policy", 2, None],
    ["importance of rows", 1, None],
    ["database", 1, None],
    ["gradients", 1, None],
    ["correction", 1, None],
    ["projector", 1, None],
    ["final pruning", 1, None],
    ["saving"],
]
OF_THE_PAPER: list[list[Any]] = [["candidate", 2, 1], ["candidate", 1, 2], ["round", 2, 2]]


TWO_BLOCKS = ["--set", "finalize.keep_last_block=false"]
"""Of two blocks one can go then."""
LITTLE = "scored positions"
"""In the warnings that the data is little."""
ENDS = ["final", "measuring", "saving", "checking"]
PAPER = ["data", "database", "round", "dense", *ENDS]
PLUS = ["data", "importance", "database", "dense", "gradients", "policy", "projector", *ENDS]
"""The first correction gains nothing here: only a last one would have a line."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models `llava` and `llama`, and a text."""
    made = tmp_path_factory.mktemp("command")
    for name in ("llava", "llama"):
        save_checkpoint(*TINY[name].build(), made / name)
    (made / "words.txt").write_text(WORDS)
    return made


@pytest.fixture
def command(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command beside the models; exit status, standard output, standard error."""
    monkeypatch.chdir(place)

    def run(*arguments: object, model: str = "llava") -> tuple[int, str, str]:
        given = [str(argument) for argument in arguments]
        for option, value in (("--text", "words.txt"), ("--work", tmp_path / "work")):
            if option not in given:
                given += [option, str(value)]
        if "--output" not in given:
            given += ["--output", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["efficientllava", "prune", model, *FAST, *given])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.app()
        captured = capfd.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


@pytest.mark.parametrize(
    ("method", "moments", "works"),
    [
        pytest.param("efficientllava_plus", MOMENTS[:1], PLUS, id="one"),
        pytest.param(
            "efficientllava_plus", MOMENTS[1:], PLUS, id="all others", marks=pytest.mark.slow
        ),
        pytest.param("efficientllava", OF_THE_PAPER, PAPER, id="search", marks=pytest.mark.slow),
    ],
)
def test_killed(
    place: Path, tmp_path: Path, method: str, moments: list[list[Any]], works: list[str]
) -> None:
    """kill -9 in the database, the search, the final pruning and the copy: the same bytes."""

    def arguments(name: str) -> list[str]:
        folders = ["--work", str(tmp_path / f"work-{name}"), "--output", str(tmp_path / name)]
        given = [str(place / "llava"), "--text", str(place / "words.txt"), "--method", method]
        fast = [*FAST, *(FEW_ROUNDS if method == "efficientllava" else [])]
        return ["prune", *given, *fast, *folders]

    told = json.dumps([arguments("killed"), arguments("alone"), moments, str(tmp_path / "log")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED, told], cwd=ROOT, env=environment)
    assert done.returncode == 0
    logs = {path.name[4:]: path.read_text() for path in tmp_path.glob("log-*")}
    assert folder_digest(tmp_path / "killed") == folder_digest(tmp_path / "alone")
    results = [tmp_path / f"work-{name}" / "pruned" for name in ("killed", "alone")]
    assert folder_digest(results[0]) == folder_digest(results[1])
    left = [path for path in tmp_path.rglob("*") if path.name.endswith((".tmp", ".old"))]
    assert not left, "what a killed process left behind is cleared"
    # a log has lines of ours and nothing else, and the table
    first = [line for line in logs["undisturbed"].splitlines() if LITTLE not in line]
    told = [line.split()[1] for line in first if line.startswith("prune: ")]
    assert list(dict.fromkeys(told)) == works
    table = [line for line in first if not line.startswith("prune: ")]
    gained = ["gained over uniform"] if method == "efficientllava_plus" else []
    assert [line.split("  ")[0] for line in table] == [
        *("method", "zeros in the decoder", "proxy loss (nll), dense", "proxy loss (nll), pruned"),
        *("KL to the dense model", *gained, "checkpoint", "pruned with", "saved to"),
    ]
    again = logs["again"].splitlines()
    assert again[:2] == ["prune: data 0/1", "prune: data 1/1"]
    assert logs["resumed"].splitlines()[-len(table) :] == again[2:]
    assert again[2:] == [line.replace("/alone", "/killed") for line in table], (
        "after the end only the table of an undisturbed run is printed"
    )


BAD: dict[str, tuple[list[str], str]] = {
    "no such model": (["--model", "./nowhere"], "no such model folder"),
    "no model": (["--model", "empty"], "the model folder has no config.json"),
    "hub id": (["--model", "owner/name"], "a hub id needs its commit"),
    "no such text": (["--text", "nowhere.txt"], "folder -> name a text file, or a folder with"),
    "text too short": (["--text", "short.txt"], "--text: the text is too short"),
    "empty text": (["--text", "empty.txt"], "the text is empty -> give"),
    "text without a name": (["--text", ""], "no such text file"),
    "binary text": (["--text", "binary.txt"], "not UTF-8 text"),
    "pairs without images": (["--pairs", "pictureless"], "image.png"),
    "no pairs": (["--pairs", "nowhere"], "--pairs: nowhere: no such folder"),
    "pairs without a name": (["--pairs", ""], "no such folder"),
    "sparsity 0": (["--sparsity", "0"], "--sparsity: 0.0 is not between 0 and 1"),
    "sparsity nan": (["--sparsity", "nan"], "nan is not between 0 and 1"),
    "sparsity inf": (["--sparsity", "inf"], "inf is not between 0 and 1"),
    "sparsity -1": (["--sparsity", "-1"], "-1.0 is not between 0 and 1"),
    "sparsity in words": (["--sparsity", "half"], "Invalid value for '--sparsity'"),
    "method": (["--method", "efficentllava"], "did you mean efficientllava?"),
    "a wrong name": (["--method", "wnada"], "(did you mean wanda?) -> known: magnitude, wanda,"),
    "model without a name": (["--model", ""], "MODEL: is empty -> name"),
    "model that is a file": (["--model", "words.txt"], "words.txt: is a file, no model folder"),
    "output without a name": (["--output", ""], "Invalid value for '--output': it is empty"),
    "too many blocks": (
        ["--method", "shortgpt", "--sparsity", "0.9"],
        "--sparsity: ratio 0.9 removes",
    ),
    "parameter": (["--set", "search.round=3"], "did you mean rounds?"),
    "section": (["--set", "serch.rounds=3"], "--set: unknown section serch (did you mean search?"),
    "section not read here": (["--set", "evaluation.batch_size=3"], "unknown section evaluation"),
    "proxy parameter": (["--set", "proxy.text=words.txt"], "unknown parameter proxy.text"),
    "proxy value": (["--set", "proxy.segments=-1"], "proxy.segments"),
    "no value": (["--set", "search.rounds"], "is no parameter"),
    "no YAML": (["--set", "search.offsets=[1"], "not valid YAML"),
    "pattern of another ratio": (
        ["--set", "obs.pattern=1:4"],
        "--sparsity: ratio 0.5 contradicts obs.pattern 1:4, which is 1 zeros in every group of 4 "
        "-> give 0.25",
    ),
    "patterns of other ratios": (
        ["--set", "obs.patterns=[3:4, 2:4, 1:4]", "--sparsity", "0.8"],
        "contradicts obs.patterns 1:4, 2:4, 3:4",
    ),
    "value": (["--set", "search.rounds=ten"], "search.rounds"),
    "pattern that the method cannot make": (
        ["--set", "obs.pattern=2:4", "--method", "owl"],
        "--method: owl makes no zeros in the pattern obs.pattern 2:4 -> leave the pattern out, or "
        "name one of magnitude, ",
    ),
    "two limits": (
        ["--max-seconds", "100", "--set", "search.max_seconds=200"],
        "two limits are given, 100 and 200",
    ),
    "max seconds": (["--max-seconds", "nan"], "--max-seconds: nan is no number of seconds"),
    "device": (["--device", "gpu"], "--device: gpu: is no device -> give cpu, cuda or cuda:N"),
    "device as a parameter": (
        ["--set", "machine.device=tpu"],
        "machine.device: is not of its form: what search (with its database), prune and evaluate "
        "compute on: cpu, cuda or cuda:N (given: 'tpu')",
    ),
    "missing GPU": (["--device", "cuda:99"], "--device: cuda:99: "),
    "GPU named twice": (["--set", "machine.device=cuda", "--device", "cpu"], "two devices"),
    "no memory": (["--set", "machine.device_memory=0.00001"], "--set machine.device_memory: "),
    "work of another version": (["--work", "old"], "is of another version (layout 0"),
    "work that is something else": (["--work", "llama"], "holds something else"),
    "work that is a file": (["--work", "words.txt"], "holds something else"),
    "work below a file": (["--work", "words.txt/a/b"], "cannot be written"),
    "work in use": (["--work", "used"], "another process is pruning in it"),
    "output that is something else": (["--output", "llama"], "holds something else"),
    "output that is a file": (["--output", "words.txt"], "--output words.txt: is a file"),
    "output below a file": (["--output", "words.txt/out"], "cannot be written"),
    "output of another model": (["--output", "another"], "another pruned model (wanda at 0.7)"),
    "output in the work folder": (["--work", "w", "--output", "w/out"], "lies in the work folder"),
    "long name": (["--output", "o" * 300], "File name too long"),
}


def write_pairs(folder: Path, image: bool) -> None:
    """Four questions in ScienceQA's layout, whose images may be missing."""
    problems = {}
    for number in range(4):
        texts = {"hint": "", "subject": "natural science", "grade": "grade2", "topic": "w1"}
        problems[str(number)] = {
            **texts,
            "question": f"w{number}",
            "choices": ["w8", "w9"],
            "answer": number % 2,
            "image": "image.png",
            "split": "train",
        }
        if image:
            place = folder / "images" / "train" / str(number) / "image.png"
            place.parent.mkdir(parents=True)
            Image.new("RGB", (20, 16), (60 * number, 0, 0)).save(place)
    write_json(folder / "problems.json", problems)
    write_json(folder / "pid_splits.json", {"train": list(problems)})


@pytest.fixture(scope="module")
def bad(place: Path) -> Iterator[Path]:
    """Beside the models: everything that can be wrong."""
    (place / "empty").mkdir()
    (place / "short.txt").write_text("w1 w2 w3")
    (place / "empty.txt").write_text(" \n")
    (place / "binary.txt").write_bytes(bytes(range(256)))
    write_json(place / "old" / "layout.json", {"layout": 0})
    write_json(place / "another" / "pruning.json", {"method": "wanda", "ratio": 0.7})
    write_pairs(place / "pictureless", image=False)
    with locked(place / "used"):
        yield place


@pytest.mark.parametrize("case", BAD)
def test_bad_input(bad: Path, command: Callable[..., tuple[int, str, str]], case: str) -> None:
    """Exit status 2, one clear line (with a remedy), no traceback, nothing destroyed."""
    options, message = BAD[case]
    before = folder_digest(bad)
    if options[0] == "--model":
        status, out, error = command(model=options[1])
    else:
        status, out, error = command(*options)
    plain = " ".join(re.sub(r"[│╭╮╰╯─]", " ", error).split())
    assert status == 2 and message in plain, error
    told = [line for line in out.splitlines() if not line.startswith("prune: data ")]
    assert "Traceback" not in error and not told
    if error.startswith("error: "):
        lines = error.splitlines()
        assert len(lines) <= 2 and all(line.startswith("  -> ") for line in lines[1:]), error
    assert folder_digest(bad) == before


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder that this process may read and not write."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)


def test_no_write_permission(nobody: Path) -> None:
    request = prune_command.Request(
        "llava", None, "magnitude", 0.5, None, None, nobody / "work", None, None, ()
    )
    with pytest.raises(UserError, match=r"work folder .*cannot be written \(Permission denied\)"):
        prune_command.run(request, Path("/tmp/efficientllava-nowhere"))
    with pytest.raises(UserError, match=r"work folder .*cannot be written \(Permission denied\)"):
        with locked(nobody / "work"):
            pass
    with pytest.raises(UserError, match=r"--output .*cannot be written \(Permission denied\)"):
        prune_command.run(request, nobody / "out")


def test_output_is_never_overwritten(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    assert command("--method", "magnitude")[0] == 0
    before = folder_digest(tmp_path / "out")
    status, _, error = command("--method", "wanda")
    assert status == 2 and "another pruned model (magnitude at 0.5)" in error
    # the same method and ratio: known only when it is done, and then it is in the work folder
    status, _, error = command("--method", "magnitude", model="llama")
    assert status == 2 and "other data or parameters" in error
    kept = re.search(r"the new model is in (\S+)", error)
    assert kept and (Path(kept[1]) / "config.json").is_file()
    assert folder_digest(tmp_path / "out") == before


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(
    command: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    number: int,
    expected: int,
) -> None:
    """Ctrl-C or SIGTERM: exit status 130 or 143, and one line."""

    @contextmanager
    def interrupting(*_: Any) -> Iterator[Callable[[Event], None]]:
        def see(event: Event) -> None:
            if event.name == "policy":
                os.kill(os.getpid(), number)

        yield see

    monkeypatch.setattr(prune_command, "shown", interrupting)
    # a process started in the background ignores Ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status, out, error = command()
    finally:
        signal.signal(signal.SIGINT, before)
    assert (status, out) == (expected, "")
    lines = [line for line in error.splitlines() if LITTLE not in line]
    assert lines == ["interrupted: the same command resumes"]
    assert not (tmp_path / "out").exists()


def test_surprises_are_in_the_table(
    command: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A ratio that rounds to nothing, and to everything; zeros that were there; a vain revision."""

    def of(ratio: str, model: object = "llama", *given: str) -> str:
        name = f"{ratio}-{len(given)}"
        where = ["--work", str(tmp_path / f"work-{name}"), "--output", str(tmp_path / name)]
        status, out, error = command(
            "--method", "magnitude", "--sparsity", ratio, *where, *given, model=str(model)
        )
        assert status == 0, error
        return out

    out = of("1e-9")
    assert "magnitude at 1e-09\n" in out and "1e-09 rounds to no weight of any matrix" in out
    out = of("0.9999999")
    assert "magnitude at 0.9999999\n" in out and "rounds to all weights of every matrix" in out
    out = of("0.5")
    assert "zeros before" not in out and "rounds to" not in out
    assert "revision" not in caplog.text
    out = of("0.5", tmp_path / "0.5-0", "--revision", "abc")
    assert "50.00% of the weights, which count as zeros" in out
    assert "is a folder: revision abc is not looked at" in caplog.text


@pytest.mark.parametrize("model", ["llava", "llama"])
def test_dry_run(command: Callable[..., tuple[int, str, str]], tmp_path: Path, model: str) -> None:
    """It says everything for every method, and writes nothing."""
    for method in METHODS:
        status, out, error = command("--method", method, "--dry-run", *TWO_BLOCKS, model=model)
        assert (status, error) == (0, ""), method
        for part in ("model", "step 1", "final pruning", "memory", "disk", "time", "of 8 tokens"):
            assert part in out, (method, part)
        wide = METHODS[method].levels(Parameters(), 0.5)
        assert (f"database: every matrix at {len(wide)} levels" in out) == bool(wide)
        assert bool(wide) == ("database" in METHODS[method].needs)
        if method == "efficientllava_plus":  # the data hold fewer tokens than the parameters ask
            assert "gradients of 8 tokens, policies compared on 16 others" in out
    assert not any(tmp_path.iterdir()), "no work folder, no output"


def test_estimate_fits_a_real_run(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Disk within a factor of 2 (headers and records of a tiny model); the candidates exactly."""
    made: list[Estimate] = []
    estimate = prune_command.estimate
    monkeypatch.setattr(
        prune_command, "estimate", lambda *given: made.append(estimate(*given)) or made[-1]
    )
    assert command("--dry-run")[0] == 0
    assert command()[0] == 0
    work = tmp_path / "work"
    disk = sum(path.stat().st_size for path in work.rglob("*.safetensors"))
    assert made[0].disk / 2 < disk < made[0].disk * 2
    before = folder_digest(work)
    assert command("--dry-run")[0] == 0
    assert folder_digest(work) == before, "the work folder stays as it was"
    assert "all 13 levels are in the work folder" in made[1].steps[1]
    assert made[1].disk < made[0].disk and made[1].weights == made[0].weights == 9216


def test_table_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    rows = [("method", "efficientllava at 0.5"), ("pruned with", "64 segments of text; " * 9)]
    screen, log = Terminal(), io.StringIO()
    print_rows([*rows, ("saved to", "/a/very/long/path" * 8)], screen)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) > 5
    print_rows(rows, log)
    assert log.getvalue().splitlines()[0] == "method       efficientllava at 0.5"
    assert len(log.getvalue().splitlines()) == 2


def test_bar_fits_80_columns() -> None:
    """Names and counts are whole; what was measured is cut."""
    screen = io.StringIO()
    values = {"best_risk": 0.443, "best_loss": 0.4598, "best_complexity": -0.03353, "mean": 0.57}
    with bar("prune", Console(file=screen, width=80, force_terminal=True)) as show:
        show(Event("final pruning", 1, 32))
        show(Event("round", 9, 10, {"round": 9, **values}))
    lines = (
        re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n").splitlines()
    )
    assert max(map(len, lines)) <= 80
    last = [line for line in lines if line.startswith("prune: ")][-2:]
    assert last[0].startswith("prune: final pruning ") and " 1/32 " in last[0]
    assert last[1].startswith("prune: round ") and " 9/10 " in last[1] and "risk 0.443" in last[1]


def test_transformers_settings_are_restored(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Loading and saving show nothing; the user's own loading shows what it did before."""
    from transformers import LlavaForConditionalGeneration
    from transformers.utils import logging

    from efficientllava.models.checkpoint import load_model, load_processor

    logging.enable_progress_bar()
    capfd.readouterr()
    level = logging.get_verbosity()
    model = load_model(place / "llava")
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(model, load_processor(place / "llava"), Path(folder) / "saved")
    assert capfd.readouterr() == ("", "")
    assert logging.get_verbosity() == level and logging.is_progress_bar_enabled()
    LlavaForConditionalGeneration.from_pretrained(place / "llava")
    assert "Loading weights" in capfd.readouterr().err


def test_memory_of_the_device_that_lacks(place: Path) -> None:
    from efficientllava.offload.devices import enough_memory

    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ):
        with pytest.raises(UserError, match="the memory does not suffice"), enough_memory("cuda"):
            raise error
    with pytest.raises(RuntimeError, match="shapes"), enough_memory("cuda"):
        raise RuntimeError("shapes differ")


def test_lock_is_given_back(tmp_path: Path) -> None:
    """A work folder is free after an error; one that a kill left half made is taken."""
    with pytest.raises(KeyError), locked(tmp_path / "work"):
        raise KeyError
    with locked(tmp_path / "work"), open(tmp_path / "work" / "lock") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (tmp_path / "half").mkdir()
    for name in ("lock", ".layout.json.tmp"):
        (tmp_path / "half" / name).touch()
    with locked(tmp_path / "half"):
        pass
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds something else"), locked(tmp_path / "mine"):
        pass
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_page_prune_your_model(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every command and the Python lines of docs/prune.md, on a tiny model in the place of the
    named one, with few and short samples."""
    page = (ROOT / "docs" / "prune.md").read_text().replace("<commit>", "0123abc")
    page = page.replace("\\\n", " ")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "llava", tmp_path / "llava-hf" / "llava-1.5-7b-hf")
    (tmp_path / "ptb.train.txt").write_text(WORDS)
    write_pairs(tmp_path / "scienceqa", image=True)
    (lines,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    lines = lines.replace('"scienceqa")', '"scienceqa", segments=3, length=8)')
    fast = {"search": {"candidates": 3, "survivors": 1, "rounds": 1}, "machine": {"workers": 1}}
    lines = lines.replace('work="work")', f'work="work", parameters={fast})')
    exec(compile(lines, "docs/prune.md", "exec"), {})
    assert (tmp_path / "pruned" / "config.json").is_file()
    shutil.rmtree(tmp_path / "pruned")  # made with other parameters than the command's
    commands = [
        shlex.split(line)
        for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
        for line in block.splitlines()
    ]
    assert len(commands) == 4
    for words in commands:
        extra = [*FAST, *([] if "--text" in words else ["--text", "ptb.train.txt"])]
        monkeypatch.setattr(sys, "argv", [*words, *(extra if words[1] == "prune" else [])])
        with pytest.raises(SystemExit) as end:
            cli.app()
        assert not end.value.code, capfd.readouterr().err
    assert (tmp_path / "faster" / "pruning.json").is_file()
