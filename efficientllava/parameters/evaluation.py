"""Sections `evaluation` and `export`: what is measured of a pruned model."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from efficientllava.parameters.section import (
    BenchmarkName,
    EngineName,
    MainBenchmark,
    RuntimeName,
    Section,
)
from efficientllava.registry import ENGINES


class JudgeParameters(Section):
    """The model that grades answers to MM-Vet and LLaVA-Bench; its key is OPENAI_API_KEY."""

    model: str | None = Field(
        None, min_length=1, description="the judge's model; null for the one of the published numbers"
    )
    base_url: str | None = Field(
        None, min_length=1, description="OpenAI-compatible endpoint; null for OpenAI's own"
    )
    runs: int = Field(1, ge=1, le=1000, description="judgements of each answer (MM-Vet paper: 5; LLaVA: 3)")
    parallel: int = Field(8, ge=1, le=1024, description="requests under way at the same time")
    attempts: int = Field(6, ge=1, le=100, description="tries of one request before it is given up")
    timeout: float = Field(60.0, gt=0.0, le=86400.0, description="seconds until a request counts as failed")


class EvaluationParameters(Section):
    """What a pruned model is measured on."""

    engine: EngineName = Field(
        "own", description="who asks and scores: `own` (`benchmark` and `benchmarks`, as their official scripts do) or `lmms_eval` (`lmms_tasks`, by the package lmms-eval)"
    )
    lmms_tasks: tuple[str, ...] = Field(
        (), description="tasks, groups and tags of lmms-eval; the first metric of the first one stands in the comparison"
    )
    lmms_folder: str | None = Field(
        None, min_length=1, description="folder with further task definitions of lmms-eval; Python files that they name are run"
    )
    benchmark: MainBenchmark = Field(
        "demo", description="the benchmark whose accuracy stands in the comparison"
    )
    benchmarks: tuple[BenchmarkName, ...] = Field(
        (), description="further benchmarks; their scores stand in scores.json below `benchmarks`"
    )
    data: dict[BenchmarkName, str] = Field(
        {}, description="for each benchmark but `demo`: its folder of official files, or a hub id"
    )
    splits: dict[BenchmarkName, str] = Field(
        {}, description="splits other than the published ones, by benchmark"
    )
    style: Literal["llava_v1_5", "llava_sqa"] = Field(
        "llava_v1_5", description="how the model was trained: decides how ScienceQA's questions are put, and whether a LLaVA's images are padded (`llava_v1_5`) or cropped (`llava_sqa`) where its config.json has no `image_aspect_ratio`"
    )
    chat_template: str = Field(
        "auto", min_length=1, description="how questions are wrapped: `auto` (the checkpoint's own chat template; LLaVA-1.5 and LLaVA-SQA as their official scripts; bare without a template), `none` (bare), or a name: of a template in `additional_chat_templates/`, `vicuna_v1` or `llava_v1`"
    )
    questions: int | None = Field(None, ge=1, le=1_000_000_000, description="number of test questions, of each task with `lmms_eval`; null for all")
    batch_size: int = Field(64, ge=1, le=65536, description="questions in a forward pass")
    new_tokens: int | None = Field(
        None, ge=1, le=32768, description="tokens at which an answer is cut; null for the benchmark's or task's own"
    )
    text: str | None = Field(
        None, min_length=1, description="held-out text of the text loss and the perplexity, a source as in proxy.text (of a folder: ptb.test.txt, or else ptb.valid.txt); null for proxy.text"
    )
    text_segments: int = Field(
        64, ge=1, le=1_000_000, description="held-out text segments of proxy.segment_length tokens"
    )
    judge: JudgeParameters = JudgeParameters()

    @model_validator(mode="after")
    def engine_fits(self) -> Self:
        if (misfit := ENGINES[self.engine].misfit(self)) is not None:
            raise ValueError(misfit)
        return self

    @property
    def compared(self) -> str:
        """The benchmark or task whose accuracy stands in the comparison."""
        return self.lmms_tasks[0] if self.lmms_tasks else self.benchmark

    @property
    def named_benchmarks(self) -> tuple[BenchmarkName, ...]:
        """All benchmarks but the demo one, the main one first."""
        return (() if self.benchmark == "demo" else (self.benchmark,)) + self.benchmarks


class ExportParameters(Section):
    """The exported model and its speed."""

    runtimes: tuple[RuntimeName, ...] = Field(
        ("sparse", "onnxruntime"), min_length=1, description="runtimes that are measured"
    )
    prompt_tokens: int = Field(128, ge=8, le=131_072, description="length of the prefill graph, in tokens")
    context: int = Field(
        256, ge=16, le=131_072, description="length of the KV cache in the decode graph, in tokens"
    )
    threads: int = Field(1, ge=1, le=1024, description="threads of a runtime")
    repetitions: int = Field(30, ge=3, le=1_000_000, description="timed repetitions; medians are reported")
    answers: int = Field(
        8, ge=1, le=1_000_000, description="test questions answered end to end and compared token by token"
    )
    new_tokens: int = Field(8, ge=1, le=32768, description="tokens generated for each of them")

    @model_validator(mode="after")
    def context_holds_prompt(self) -> Self:
        if self.prompt_tokens + self.new_tokens > self.context:
            raise ValueError(
                f"context {self.context} is shorter than prompt_tokens {self.prompt_tokens} "
                f"+ new_tokens {self.new_tokens}"
            )
        return self
