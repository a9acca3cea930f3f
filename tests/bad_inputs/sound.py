"""A folder of everything that commands read from outside, all of it sound and tiny."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from efficientllava.export.decoding import Prompt
from efficientllava.export.model import export_model
from efficientllava.files import write_json
from efficientllava.models.checkpoint import save_checkpoint
from efficientllava.models.families import adapter_for
from efficientllava.sparse import pack_checkpoint
from tests.export.conftest import PARAMETERS, tiny_model, tiny_processor

WORDS = " ".join(f"w{number % 50}" for number in range(800))


def make(folder: Path) -> None:
    """Checkpoints (whole, in shards, packed), an export, an image, texts, benchmarks, answers."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    for name in ("image.png", "image.jpg"):
        Image.fromarray(pixels).save(folder / name)
    (folder / "words.txt").write_text(WORDS)
    _checkpoints(folder)
    _benchmarks(folder / "data")


def _checkpoints(folder: Path) -> None:
    model, processor = tiny_model(), tiny_processor()
    save_checkpoint(model, processor, folder / "dense")
    rows = []
    for matrix in adapter_for(model).matrices:
        weight = matrix.weight.clone()
        zeros = round(0.75 * matrix.size)
        weight.view(-1)[torch.randperm(matrix.size)[:zeros]] = 0
        matrix.replace(weight)
        row = {"name": matrix.name, "level": 0.75, "size": matrix.size, "zeros": zeros}
        rows.append({**row, "already_zero": 0})
    policy = {row["name"]: 0.75 for row in rows}
    record = {"method": "magnitude", "ratio": 0.75, "matrices": rows, "policy": policy}
    save_checkpoint(model, processor, folder / "model", {"pruning.json": record})
    save_checkpoint(model, processor, folder / "shards", {"pruning.json": record}, shard=40_000)
    pack_checkpoint(folder / "model", folder / "packed")
    prompts = [Prompt("<image> w1 w2", folder / "image.png"), Prompt("w3 w4", None)]
    parameters = PARAMETERS.model_copy(update={"runtimes": ("onnxruntime",), "repetitions": 3})
    export_model(folder / "model", folder / "dense", prompts, folder / "export", parameters)


def _benchmarks(data: Path) -> None:
    question = {
        "question": "Which is round?", "choices": ["ball", "box"], "answer": 0, "hint": "",
        "image": None, "grade": "grade2", "subject": "natural science", "lecture": "Look.",
        "solution": "A ball rolls.", "split": "test",
    }  # fmt: skip
    answers = [{"answer": "a dog", "answer_confidence": "yes"}] * 10
    photo = {"image": "0.jpg", "question": "What?", "answers": answers, "answer_type": "other"}
    sample = {"imagename": "0.jpg", "question": "What?", "answer": "a dog", "capability": ["rec"]}
    scene = {"question_id": 0, "image": "0.jpg", "category": "conv", "text": "What?"}
    reply = {"question_id": 0, "text": "A dog.", "answer_id": "a"}
    grade = {"model": ["judge"], "content": ["0.5"], "score": [0.5]}
    review = {"question_id": 0, "category": "llava_bench_conv", "content": "8 7", "tuple": [8, 7]}
    rule = {"llava_bench_conv": {"role": "Assistant", "prompt": "Judge."}}
    documents: dict[str, Any] = {
        "scienceqa/problems.json": {"1": question, "2": question},
        "scienceqa/pid_splits.json": {"test": ["1", "2"]},
        "scienceqa/result.json": {"results": {"1": 0, "2": 1}, "outputs": {"1": "A", "2": "B"}},
        "vizwiz/val.json": [photo, {**photo, "image": "1.jpg"}],
        "mmvet/mm-vet.json": {"v1_0": sample},
        "mmvet/grades.json": {"v1_0": grade},
        "llava_bench/rule.json": rule,
    }
    lines: dict[str, list[dict[str, Any]]] = {
        "scienceqa/answers.jsonl": [
            {"question_id": "1", "text": "A"},
            {"question_id": "2", "text": "B"},
        ],
        "vizwiz/answers.jsonl": [{"question_id": n, "text": "a dog"} for n in (0, 1)],
        "llava_bench/questions.jsonl": [scene],
        "llava_bench/context.jsonl": [{"image": "0.jpg", "caption": "A dog."}],
        "llava_bench/answers_gpt4.jsonl": [reply],
        "llava_bench/reviews.jsonl": [review],
    }
    for name, value in documents.items():
        write_json(data / name, value)
    for name, rows in lines.items():
        (data / name).parent.mkdir(exist_ok=True)
        (data / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
