"""The benchmarks as data: what is asked, in which words, how long an answer may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from efficientllava.benchmarks import scienceqa_prompts
from efficientllava.benchmarks.conversations import CONVERSATIONS, IMAGE_TOKEN, with_image
from efficientllava.benchmarks.llava_bench import read_scenes
from efficientllava.benchmarks.mmvet import read_samples
from efficientllava.benchmarks.records import Record
from efficientllava.benchmarks.scienceqa import Problem, read_problems
from efficientllava.benchmarks.vizwiz import read_photos
from efficientllava.errors import UserError


@dataclass(frozen=True)
class Style:
    """A way to put the questions.

    Attributes:
        conversation: a name of `CONVERSATIONS`.
        suffix: a last line of the user's message; empty for none.
    """

    conversation: str = "vicuna_v1"
    suffix: str = ""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        styles, splits: what there is; the first is taken when none is named.
        new_tokens: the length at which the official script cuts an answer.
        judge: the judge that the published numbers were made with; empty where none is needed.
        digits: decimals of the published percentages.
        hub: parquet records.
        source: the official scripts that are followed.
    """

    name: str
    title: str
    styles: Mapping[str, Style]
    splits: tuple[str, ...]
    new_tokens: int
    digits: int
    hub: str
    source: str
    judge: str = ""

    def style(self, name: str | None) -> tuple[str, Style]:
        """A style by name; the first one for None.

        Raises:
            UserError: the benchmark is not put in that style.
        """
        chosen = name or next(iter(self.styles))
        if chosen not in self.styles:
            raise UserError(f"no style {chosen!r} (there are: {', '.join(self.styles)})", self.name)
        return chosen, self.styles[chosen]

    def split(self, name: str | None) -> str:
        """A split by name; the first one for None.

        Raises:
            UserError: the benchmark has no such split.
        """
        chosen = name or self.splits[0]
        if chosen not in self.splits:
            raise UserError(f"no split {chosen!r} (there are: {', '.join(self.splits)})", self.name)
        return chosen


_LLAVA = "haotian-liu/LLaVA c121f04"
_SCIENCEQA = Benchmark(
    name="scienceqa",
    title="ScienceQA",
    styles={
        "llava_v1_5": Style("vicuna_v1", scienceqa_prompts.LETTER_SUFFIX),
        "llava_sqa": Style("llava_v1"),
    },
    splits=("test", "val", "train", "minitest", "minival", "minitrain"),
    new_tokens=1024,
    digits=2,
    hub="derek-thomas/ScienceQA",
    source=f"{_LLAVA}: model_vqa_science.py, eval_science_qa.py",
)
BENCHMARKS = {
    each.name: each
    for each in (
        _SCIENCEQA,
        replace(_SCIENCEQA, name="scienceqa_img", title="ScienceQA, questions with an image"),
        Benchmark(
            name="vizwiz",
            title="VizWiz-VQA",
            styles={"llava_v1_5": Style()},
            splits=("val", "test", "train"),
            new_tokens=128,
            digits=4,
            hub="lmms-lab/VizWiz-VQA",
            source=f"{_LLAVA}: model_vqa_loader.py, m4c_evaluator.py",
        ),
        Benchmark(
            name="mmvet",
            title="MM-Vet",
            styles={"llava_v1_5": Style()},
            splits=("test", "bard"),
            new_tokens=1024,
            digits=1,
            hub="lmms-lab/MMVet",
            source=f"{_LLAVA}: model_vqa.py; yuweihao/MM-Vet: mm-vet_evaluator.py",
            judge="gpt-4-0613",
        ),
        Benchmark(
            name="llava_bench",
            title="LLaVA-Bench in the wild",
            styles={"llava_v1_5": Style()},
            splits=("test",),
            new_tokens=1024,
            digits=1,
            hub="lmms-lab/llava-bench-in-the-wild",
            source=f"{_LLAVA}: model_vqa.py, eval_gpt_review_bench.py, summarize_gpt_review.py",
            judge="gpt-4-0314",
        ),
    )
}
"""The `embedded` set is not among them: it is answered by likelihood (multiple_choice.py)."""


def benchmark_named(name: str) -> Benchmark:
    """An entry of the catalogue.

    Raises:
        UserError: there is none of that name.
    """
    if name not in BENCHMARKS:
        raise UserError(f"no benchmark {name!r} (there are: {', '.join(BENCHMARKS)})")
    return BENCHMARKS[name]


def _with_image(source: str | Path, split: str, style: str) -> Sequence[Record]:
    return [each for each in read_problems(source, split, style) if each.has_image]


_READERS: dict[str, Callable[[str | Path, str, str], Sequence[Record]]] = {
    "scienceqa": read_problems,
    "scienceqa_img": _with_image,
    "vizwiz": lambda source, split, style: read_photos(source, split),
    "mmvet": lambda source, split, style: read_samples(source, split),
    "llava_bench": lambda source, split, style: read_scenes(source, split),
}


def read_records(
    benchmark: Benchmark, source: str | Path, split: str | None = None, style: str | None = None
) -> Sequence[Record]:
    """The questions of a benchmark, in official order.

    Args:
        source: a folder with the official files, a folder of parquet files or a hub id.

    Raises:
        UserError: naming the file and the record that cannot be used.
    """
    style_name, _ = benchmark.style(style)
    return _READERS[benchmark.name](source, benchmark.split(split), style_name)


def message(benchmark: Benchmark, record: Record, style: str | None = None) -> str:
    """The user's message, with the image token in front where there is an image.

    Raises:
        UserError: the question cannot be put in this style, because its full record is missing.
    """
    name, chosen = benchmark.style(style)
    if isinstance(record, Problem):
        if not record.text:
            raise UserError(
                f"style {name} needs the whole record of question {record.id}, and only its text "
                "in another layout is at hand",
                where=benchmark.name,
                remedy="put problems.json into the data folder",
            )
        return scienceqa_prompts.message(record.text, record.has_image, chosen.suffix)
    return with_image(record.text, record.image is not None)


def full_prompt(benchmark: Benchmark, record: Record, style: str | None = None) -> str:
    """Everything the model reads, to the character: system sentence, roles, message.

    BOS is the tokenizer's; "<image>" stands where the image's tokens go.
    """
    _, chosen = benchmark.style(style)
    return CONVERSATIONS[chosen.conversation].prompt(message(benchmark, record, style))


def logged_prompt(benchmark: Benchmark, record: Record, style: str | None = None) -> str:
    """The `prompt` of an answer line: officially with "<image>" in ScienceQA only."""
    told = message(benchmark, record, style)
    return told if isinstance(record, Problem) else told.removeprefix(f"{IMAGE_TOKEN}\n")
