"""Answers through exported graphs are PyTorch's greedy answers; bad input is told clearly."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from efficientllava.data.encoding import encode_prompt
from efficientllava.errors import UserError
from efficientllava.export.assistant import Assistant, answer, graph_inputs, read_image
from efficientllava.export.decoding import Prompt
from efficientllava.models.checkpoint import load_model, load_processor
from tests.export.conftest import NEW_TOKENS, PROMPT_TOKENS, Assistants, each_runtime


def torch_tokens(checkpoint: Path, prompt: Prompt, **settings: Any) -> list[int]:
    """The new tokens of plain transformers."""
    processor, model = load_processor(checkpoint), load_model(checkpoint)
    images = None if prompt.image is None else [Image.open(prompt.image).convert("RGB")]
    inputs = processor(text=[prompt.text], images=images, return_tensors="pt")
    with torch.no_grad():
        tokens = model.generate(**inputs, do_sample=False, **settings)
    return list(tokens[0, inputs["input_ids"].shape[1] :].tolist())


@each_runtime
def test_tokens_are_those_of_generate(
    assistants: Assistants, checkpoints: dict[str, Path], prompts: list[Prompt], runtime: str
) -> None:
    assistant = assistants(runtime)
    ours = [assistant.generate(prompt) for prompt in prompts]
    theirs = [
        torch_tokens(checkpoints["pruned"], prompt, max_new_tokens=NEW_TOKENS) for prompt in prompts
    ]
    assert ours == theirs
    # answers that differ from each other and within themselves would show a wrong cache
    assert len({tuple(tokens) for tokens in ours}) == len(prompts)
    assert all(len(set(tokens)) > 1 for tokens in ours)


@pytest.mark.parametrize("size", [(50, 20), (20, 50), (200, 3)])
def test_pictures_are_prepared_as_for_the_evaluation(
    exported: Path, checkpoints: dict[str, Path], tmp_path: Path, size: tuple[int, int]
) -> None:
    """The checkpoint's own files crop, as the hub's LLaVA-1.5 does; the export's do not."""
    picture = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    prompt = Prompt("<image> w1", picture)
    processor: Any = load_processor(checkpoints["pruned"])
    expected = encode_prompt(processor, prompt.text, read_image(picture)).inputs
    inputs = graph_inputs(Assistant(exported, "onnxruntime").processor, prompt)
    assert np.array_equal(inputs.pixel_values, expected["pixel_values"])
    assert np.array_equal(inputs.input_ids, expected["input_ids"][0])
    own = AutoProcessor.from_pretrained(checkpoints["pruned"], backend="pil")
    assert not np.array_equal(graph_inputs(own, prompt).pixel_values, inputs.pixel_values)


def test_an_end_token_ends_the_answer(
    exported: Path, checkpoints: dict[str, Path], prompts: list[Prompt], tmp_path: Path
) -> None:
    tokens = Assistant(exported, "onnxruntime").generate(prompts[0])
    shutil.copytree(exported, tmp_path / "export")
    settings = tmp_path / "export" / "generation_config.json"
    changed = {**json.loads(settings.read_text()), "eos_token_id": [63, tokens[2]]}
    settings.write_text(json.dumps(changed))
    ours = Assistant(tmp_path / "export", "onnxruntime").generate(prompts[0])
    assert ours == tokens[:3]
    assert ours == torch_tokens(
        checkpoints["pruned"], prompts[0], max_new_tokens=NEW_TOKENS, eos_token_id=[63, tokens[2]]
    )


def test_answers_where_there_is_no_torch(exported: Path, prompts: list[Prompt]) -> None:
    """The folder needs a runtime and transformers' processor, nothing else."""
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from efficientllava.export.assistant import answer\n"
        "print(answer(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], 'onnxruntime'))"
    )
    prompt = prompts[0]
    done = subprocess.run(
        [sys.executable, "-c", program, str(exported), str(prompt.image), prompt.text],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assistant = Assistant(exported, "onnxruntime")
    expected = assistant.text(assistant.generate(prompt))
    assert done.stdout.strip() == expected
    assert expected.startswith("w")
    # the image token is put before a question that has none
    question = prompt.text.replace("<image>", "").strip()
    assert answer(exported, prompt.image, question, "onnxruntime") == expected


def test_a_prompt_that_just_fits(exported: Path) -> None:
    assistant = Assistant(exported, "onnxruntime")
    words = " ".join(["w1"] * PROMPT_TOKENS)
    assert assistant.generate(Prompt(words, None), 1)
    with pytest.raises(UserError, match=f"{PROMPT_TOKENS + 1} tokens .* takes {PROMPT_TOKENS}"):
        assistant.generate(Prompt(words + " w2", None), 1)


@pytest.mark.parametrize("content", [None, b"no image", b"\x89PNG\r\n\x1a\n"])
def test_bad_images_are_named(exported: Path, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "picture.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"picture\.png: (no such|not a readable) image"):
        answer(exported, path, "<image> w1", "onnxruntime")


def test_bad_exports_and_prompts_are_told(
    exported: Path, tmp_path: Path, prompts: list[Prompt]
) -> None:
    with pytest.raises(UserError, match="no such folder"):
        answer(tmp_path / "nowhere", None, "w1")
    with pytest.raises(UserError, match=r"vision\.onnx: no such file"):
        answer(tmp_path, None, "w1", "onnxruntime")
    with pytest.raises(UserError, match="no runtime of ONNX graphs has this name"):
        answer(exported, None, "w1", "abacus")
    with pytest.raises(UserError, match="the processor refuses the prompt: Found 1 <image> tokens"):
        answer(exported, None, "<image> w1", "onnxruntime")
    shutil.copytree(exported, tmp_path / "export")
    table = tmp_path / "export" / "embeddings.safetensors"
    table.write_bytes(table.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        answer(tmp_path / "export", None, "w1", "onnxruntime")
