"""Sections `model` and `proxy`: the model that is pruned, and the data it is pruned with."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from efficientllava.parameters.section import Section


class DemoParameters(Section):
    """The tiny LLaVA that the `model` stage trains itself, and its question set."""

    seed: int = Field(
        0, ge=0, description="seed of the weights, the training order and the questions"
    )
    width: int = Field(36, ge=16, le=4096, description="width of the decoder's residual stream")
    mlp_width: int = Field(88, ge=16, le=16384, description="width inside the decoder's MLPs")
    blocks: int = Field(6, ge=1, le=256, description="number of decoder blocks")
    heads: int = Field(2, ge=1, le=256, description="number of attention heads")
    vocabulary: int = Field(
        2560, ge=512, le=65536, description="number of tokens in the tokenizer's vocabulary"
    )
    vision_steps: int = Field(250, ge=1, le=1_000_000, description="training steps of the vision tower")
    steps: int = Field(800, ge=1, le=1_000_000, description="training steps of projector and decoder")
    batch_size: int = Field(24, ge=1, le=4096, description="packed sequences in a training step")
    train_questions: int = Field(
        2000, ge=1, le=1_000_000, description="questions of the training split that are written for proxy pairs"
    )
    validation_questions: int = Field(500, ge=1, le=1_000_000, description="questions in the validation split")
    test_questions: int = Field(3000, ge=1, le=1_000_000, description="questions in the test split")

    @model_validator(mode="after")
    def heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class ModelParameters(Section):
    """Which model is pruned."""

    source: str = Field(
        "demo",
        min_length=1,
        description="`demo`, `smollm2` (SmolLM2-135M-Instruct of the package index, with the demo's vision tower), a folder with a transformers checkpoint, or a hub id",
    )
    revision: str | None = Field(None, description="commit of the hub id; required with a hub id")
    family: Literal["auto", "generic"] = Field(
        "auto",
        description="`auto` takes the known family of the model's type; `generic` finds decoder "
        "and projector by structure and logs them to be checked",
    )
    demo: DemoParameters = DemoParameters()


class ProxyParameters(Section):
    """The few samples that stand in for the unknown training data."""

    text: str = Field(
        "demo",
        min_length=1,
        description="`demo`, a text file, a folder with ptb.train.txt, or a hub id of parquet text",
    )
    segments: int = Field(64, ge=1, le=1_000_000, description="number of text segments (paper: 64)")
    segment_length: int = Field(256, ge=2, le=131_072, description="tokens in a segment (paper: 256)")
    pairs: int = Field(
        256, ge=0, le=1_000_000, description="number of image-text pairs; 0 only without projector evolution"
    )
    pairs_source: str = Field(
        "demo",
        min_length=1,
        description="`demo`, or a folder of questions in ScienceQA's official layout",
    )
    seed: int = Field(0, ge=0, description="seed of the draw")
