"""A tiny LLaVA with random weights, three quarters of them zero in the pruned copy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from efficientllava.export.assistant import Assistant
from efficientllava.export.decoding import Prompt
from efficientllava.export.model import export_model
from efficientllava.export.runtimes import takes_graphs, unavailable
from efficientllava.models.checkpoint import save_checkpoint
from efficientllava.models.families import adapter_for
from efficientllava.parameters import ExportParameters
from efficientllava.registry import RUNTIMES

PROMPT_TOKENS, CONTEXT, NEW_TOKENS = 24, 32, 6
PARAMETERS = ExportParameters(
    runtimes=("deepsparse", "onnxruntime"),
    prompt_tokens=PROMPT_TOKENS,
    context=CONTEXT,
    new_tokens=NEW_TOKENS,
    repetitions=5,
)
REASONS = {name: unavailable(name) for name in RUNTIMES if takes_graphs(name)}
each_runtime = pytest.mark.parametrize(
    "runtime",
    [
        pytest.param(name, marks=pytest.mark.skipif(reason is not None, reason=str(reason)))
        for name, reason in REASONS.items()
    ],
)
Assistants = Callable[[str], Assistant]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<image>"]
WORDS = [f"w{number}" for number in range(59)]


def tiny_processor() -> LlavaProcessor:
    """Word-level tokenizer of 64 tokens, images of 32 x 32 in patches of 8: 16 image tokens."""
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def tiny_model(kv_heads: int = 4, tied: bool = False) -> LlavaForConditionalGeneration:
    """Two decoder blocks of width 32; untied and large weights, so that greedy answers vary."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            projection_dim=32,
        ),
        text_config=LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=80,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            max_position_embeddings=256,
            tie_word_embeddings=tied,
            initializer_range=0.3,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
        ),
        image_token_index=4,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=tied,
    )
    return LlavaForConditionalGeneration(config).eval()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the dense model and of a copy whose decoder is 75 % zeros."""
    folder = tmp_path_factory.mktemp("checkpoints")
    model, processor = tiny_model(), tiny_processor()
    save_checkpoint(model, processor, folder / "dense")
    generator = torch.Generator().manual_seed(1)
    for matrix in adapter_for(model).matrices:
        kept = torch.rand(matrix.weight.shape, generator=generator) < 0.25
        matrix.weight.mul_(kept)
    save_checkpoint(model, processor, folder / "pruned")
    return {"dense": folder / "dense", "pruned": folder / "pruned"}


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    """Prompts of different lengths, two with an image and one without."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    made = []
    for index, words in enumerate(("w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10")):
        path = folder / f"{index}.png"
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
        made.append(Prompt(f"<image> {words}", path))
    return [*made[:2], Prompt("w11 w12 w13 w14", None), made[2]]


@pytest.fixture(scope="session")
def measured(
    checkpoints: dict[str, Path], prompts: list[Prompt], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The pruned model, exported beside the dense one: the folder, and the record with times."""
    folder = tmp_path_factory.mktemp("exported") / "export"
    arguments = (checkpoints["pruned"], checkpoints["dense"], prompts)
    return folder, export_model(*arguments, folder, PARAMETERS)


@pytest.fixture(scope="session")
def exported(measured: tuple[Path, dict[str, Any]]) -> Path:
    """The folder of the exported model."""
    return measured[0]


@pytest.fixture(scope="session")
def assistants(exported: Path) -> Assistants:
    """The exported model by runtime, compiled once."""
    return functools.cache(lambda runtime: Assistant(exported, runtime))
