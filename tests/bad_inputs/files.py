"""The table of files: which command reads which, and what is done to each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.bad_inputs.damage import (
    BYTES,
    KINDS,
    TENSORS,
    VALUES,
    Damage,
    changed,
    fields,
    retyped,
)

VERIFY = ("efficientllava", "verify")
ASK = ("efficientllava", "ask")
QUESTION = ("image.png", "w1 w2", "--raw", "--new-tokens", "2")


def _score(benchmark: str, predictions: str) -> tuple[str, ...]:
    data = f"data/{benchmark}"
    return ("efficientllava", "score", benchmark, f"{data}/{predictions}", "--data", data)


@dataclass(frozen=True)
class Target:
    """A file from outside.

    Attributes:
        path: inside the sound folder.
        command: that reads it.
        damages: done to it, by name.
        values: whether every value in it is replaced as well, to this depth.
        sound: changes that leave it sound, and change the answer.
    """

    path: str
    command: tuple[str, ...]
    damages: dict[str, Damage] = field(default_factory=dict)
    values: int = 0
    sound: tuple[str, ...] = ()

    def cases(self, sound: Path) -> Iterator[tuple[str, Damage]]:
        """Names and damages."""
        yield from self.damages.items()
        for place in fields(sound / self.path, self.values) if self.values else ():
            name = ".".join(map(str, place))
            changes = {f"{name} is {kind}": value for kind, value in VALUES.items()}
            for told, value in {f"without {name}": ..., **changes}.items():
                if told not in self.sound:
                    yield told, changed(place, value)


RAW = KINDS | BYTES
UNNAMED = ("without v1_0.model.0", "v1_0.model is a list", "v1_0.model.0 is a text")
"""A grade file that names no judge, or another one, is one; the title says so."""
OUTPUTS = ("without outputs", "outputs is an object", "results is an object",
           *(f"without outputs.{number}" for number in (1, 2)))  # fmt: skip
"""A result file has `results`, `outputs`, or both, which are then compared."""
QUESTIONS = tuple(f"{n}.{name} is a text" for n in (1, 2) for name in ("subject", "hint", "image"))
SCORES = ("tuple.0 is a number", "tuple.0 is a fraction")
FEWER = ("without 0", "0.answer_type is a text")
"""One question less, and a kind that is not scored by itself."""
PIECES = ("without pre_tokenizer", "pre_tokenizer is null")
"""A tokenizer needs none."""
RECORDED = ("method is a text", "ratio is a fraction")
"""What a method of somebody else's may record; the zeros that are there are printed beside it."""
SIZES = ("image_processor.size is a number",)
ANSWER = ("text is a text",)
JSON = RAW | retyped()
TARGETS = [
    Target("model/config.json", (*VERIFY, "model"), JSON, 2),
    Target("model/pruning.json", (*VERIFY, "model"), JSON, 3, RECORDED),
    Target("model/model.safetensors", (*VERIFY, "model"), RAW | TENSORS),
    Target("model/generation_config.json", (*ASK, "model", *QUESTION), JSON, 1),
    Target("model/tokenizer.json", (*ASK, "model", *QUESTION), JSON, 1, PIECES),
    Target("model/tokenizer_config.json", (*ASK, "model", *QUESTION), JSON, 1),
    Target("model/processor_config.json", (*ASK, "model", *QUESTION), JSON, 2, SIZES),
    Target("shards/model.safetensors.index.json", (*VERIFY, "shards"), JSON, 1),
    Target("packed/config.json", (*VERIFY, "packed"), JSON, 1),
    Target("packed/model.safetensors", (*ASK, "packed", *QUESTION), RAW | TENSORS),
    Target("export/export.json", (*ASK, "export", *QUESTION), JSON, 1),
    Target("export/generation_config.json", (*ASK, "export", *QUESTION), JSON, 1),
    Target("export/embeddings.safetensors", (*ASK, "export", *QUESTION), RAW | TENSORS),
    Target("export/prefill.onnx", (*ASK, "export", *QUESTION), RAW),
    Target("export/decode.onnx", (*ASK, "export", *QUESTION), RAW),
    Target("export/vision.onnx", (*ASK, "export", *QUESTION), RAW),
    Target("export/processor_config.json", (*ASK, "export", *QUESTION), JSON),
    Target("image.png", (*ASK, "model", *QUESTION), RAW),
    Target("image.jpg", (*ASK, "model", "image.jpg", *QUESTION[1:]), RAW),
    Target(
        "data/scienceqa/problems.json", _score("scienceqa", "answers.jsonl"), JSON, 2, QUESTIONS
    ),
    Target("data/scienceqa/pid_splits.json", _score("scienceqa", "answers.jsonl"), JSON, 2),
    Target("data/scienceqa/answers.jsonl", _score("scienceqa", "answers.jsonl"), JSON, 1),
    Target("data/scienceqa/result.json", _score("scienceqa", "result.json"), JSON, 2, OUTPUTS),
    Target("data/vizwiz/val.json", _score("vizwiz", "answers.jsonl"), JSON, 3, FEWER),
    Target("data/vizwiz/answers.jsonl", _score("vizwiz", "answers.jsonl"), JSON, 1, ANSWER),
    Target("data/mmvet/mm-vet.json", _score("mmvet", "grades.json"), JSON, 2),
    Target("data/mmvet/grades.json", _score("mmvet", "grades.json"), JSON, 3, UNNAMED),
    Target("data/llava_bench/questions.jsonl", _score("llava_bench", "reviews.jsonl"), JSON, 1),
    Target("data/llava_bench/context.jsonl", _score("llava_bench", "reviews.jsonl"), JSON, 1),
    Target("data/llava_bench/answers_gpt4.jsonl", _score("llava_bench", "reviews.jsonl"), JSON, 1),
    Target(
        "data/llava_bench/reviews.jsonl", _score("llava_bench", "reviews.jsonl"), JSON, 2, SCORES
    ),
]
