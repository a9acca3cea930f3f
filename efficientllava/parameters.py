"""The pydantic model of params.yaml: every parameter, its bounds and what it does, once."""

from __future__ import annotations

import difflib
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from efficientllava.registry import BENCHMARKS, METHODS, RUNTIMES

Ratio = Annotated[float, Field(ge=0.0, le=1.0)]


def _known_method(name: str) -> str:
    if name == "dense":
        raise ValueError("dense is always measured; name what it is compared with")
    return METHODS.checked(name)


def _known_or_demo(name: str) -> str:
    if name == "demo":
        return name
    if difflib.get_close_matches(name, ["demo"]):
        raise ValueError(f"unknown benchmark {name!r} (did you mean demo?)")
    return BENCHMARKS.checked(name)


MethodName = Annotated[str, AfterValidator(_known_method), METHODS]
RuntimeName = Annotated[str, AfterValidator(RUNTIMES.checked), RUNTIMES]
BenchmarkName = Annotated[str, AfterValidator(BENCHMARKS.checked), BENCHMARKS]
MainBenchmark = Annotated[Literal["demo"] | str, AfterValidator(_known_or_demo), BENCHMARKS]


class Section(BaseModel):
    """A section of params.yaml: unknown names are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MachineParameters(Section):
    """What the machine gives to every stage; results depend on `threads` and `device` alone."""

    threads: int = Field(
        1,
        ge=1,
        description="threads of one process; results are bit-for-bit the same only at the same number",
    )
    device: str = Field(
        "cpu", pattern=r"^(cpu|cuda(:[0-9]+)?)$", description="what search (with its database), prune and evaluate compute on: cpu, cuda or cuda:N; another device gives the same results only to a tolerance"
    )
    device_memory: float | None = Field(
        None, gt=0.0, description="GiB of the GPU that may be used; null takes what is free. What does not fit is streamed; changes no result"
    )
    workers: int = Field(
        2, ge=1, description="a search's candidates evaluated side by side, each with `threads` and its own copy of the language model; changes no result"
    )
    executor: Literal["threads", "processes", "dask"] = Field(
        "threads", description="who the workers are: threads of the search, processes, or Dask's processes; changes no result"
    )
    dask_address: str | None = Field(
        None, description="a running Dask scheduler, e.g. tcp://host:8786, whose workers read the same folders; null starts `workers` processes here; changes no result"
    )
    gradient_checkpointing: bool = Field(
        True, description="compute decoder blocks again in the projector's backward pass: less memory, one more forward pass a step; changes no result"
    )


class DemoParameters(Section):
    """The tiny LLaVA that the `model` stage trains itself, and its question set."""

    seed: int = Field(
        0, ge=0, description="seed of the weights, the training order and the questions"
    )
    width: int = Field(36, ge=16, description="width of the decoder's residual stream")
    mlp_width: int = Field(88, ge=16, description="width inside the decoder's MLPs")
    blocks: int = Field(6, ge=1, description="number of decoder blocks")
    heads: int = Field(2, ge=1, description="number of attention heads")
    vocabulary: int = Field(
        2560, ge=512, description="number of tokens in the tokenizer's vocabulary"
    )
    vision_steps: int = Field(250, ge=1, description="training steps of the vision tower")
    steps: int = Field(800, ge=1, description="training steps of projector and decoder")
    batch_size: int = Field(24, ge=1, description="packed sequences in a training step")
    train_questions: int = Field(
        2000, ge=1, description="questions of the training split that are written for proxy pairs"
    )
    validation_questions: int = Field(500, ge=1, description="questions in the validation split")
    test_questions: int = Field(3000, ge=1, description="questions in the test split")

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
        description="`demo`, a folder with a transformers checkpoint, or a hub id",
    )
    revision: str | None = Field(None, description="commit of the hub id; required with a hub id")
    demo: DemoParameters = DemoParameters()


class ProxyParameters(Section):
    """The few samples that stand in for the unknown training data."""

    text: str = Field(
        "demo",
        min_length=1,
        description="`demo`, a text file, a folder with ptb.train.txt, or a hub id of parquet text",
    )
    segments: int = Field(64, ge=1, description="number of text segments (paper: 64)")
    segment_length: int = Field(256, ge=2, description="tokens in a segment (paper: 256)")
    pairs: int = Field(
        256, ge=0, description="number of image-text pairs; 0 only without projector evolution"
    )
    pairs_source: str = Field(
        "demo",
        min_length=1,
        description="`demo`, or a folder of questions in ScienceQA's official layout",
    )
    seed: int = Field(0, ge=0, description="seed of the draw")


class PruningParameters(Section):
    """Optimal Brain Surgeon."""

    pattern: str = Field(
        "unstructured", pattern=r"^(unstructured|[0-9]+:[0-9]+)$", description="`unstructured`, or n:m: n zeros (not n kept weights) in every m consecutive weights of a row, e.g. 2:4; it fixes `ratios` to n/m, and a search varies nothing"
    )
    patterns: tuple[Annotated[str, Field(pattern=r"^[0-9]+:[0-9]+$")], ...] | None = Field(
        None, description='n:m patterns of one m that a search gives to single matrices, in quotes: ["1:4", "2:4", "3:4"]. Its levels are then their n/m, `search.offsets` do not apply, `ratios` lie between them; other methods need one of them'
    )
    block_size: int = Field(
        128, ge=1, description="columns pruned together before the columns to the right are updated"
    )
    damping: float = Field(
        0.01, gt=0.0, le=1.0, description="added to the Hessian's diagonal, as a share of its mean"
    )
    calibration: Literal["text", "text_and_pairs"] = Field(
        "text_and_pairs", description="what Hessians are accumulated on (paper: text)"
    )
    calibration_tokens: Literal["text", "all", "text_and_drifting_visual"] = Field(
        "all", description="tokens of image-text pairs that Hessians see: text alone, all, or text and the visual tokens that a block changes most"
    )
    drifting_share: float = Field(
        0.1, gt=0.0, le=1.0, description="share of a sample's visual tokens that `text_and_drifting_visual` takes"
    )
    precision: Literal["float32", "float64"] = Field(
        "float32", description="precision of the factorisation and of the column loop"
    )
    kernel: Literal["auto", "eager", "compiled", "triton"] = Field(
        "auto", description="column loop: plain torch, compiled for the CPU (float32; same bits), Triton for CUDA (float32), or the fastest that can run"
    )

    storage: Literal["dense", "compact"] = Field(
        "dense", description="the database on disk: matrices as they are, or a bitmask and the weights that are left (half the size, decoded when used)"
    )

    @model_validator(mode="after")
    def kernel_fits_precision(self) -> Self:
        if self.kernel in ("compiled", "triton") and self.precision != "float32":
            raise ValueError(f"kernel {self.kernel} works in float32 only, not in {self.precision}")
        return self

    @model_validator(mode="after")
    def patterns_fit(self) -> Self:
        if self.patterns is not None and self.pattern != "unstructured":
            raise ValueError(f"pattern {self.pattern} and patterns contradict each other: give one")
        if self.patterns == () or len({group for _, group in self.groups}) > 1:
            raise ValueError("patterns must name at least one n:m, all of the same m")
        if len(set(self.groups)) != len(self.groups):
            raise ValueError("patterns name one twice")
        for zeros, group in self.groups:
            if not 0 < zeros < group:
                raise ValueError(f"pattern {zeros}:{group}: n must lie between 1 and m - 1")
            if self.block_size % group:
                raise ValueError(
                    f"block_size {self.block_size} is not a multiple of {group}: groups of pattern "
                    f"{zeros}:{group} would be cut; use {self.block_size // group * group or group}"
                )
        return self

    @property
    def groups(self) -> list[tuple[int, int]]:
        """(n, m) of `pattern`, or of each of `patterns` by rising n; empty when unstructured."""
        single = () if self.pattern == "unstructured" else (self.pattern,)
        named = [pattern.split(":") for pattern in self.patterns or single]
        return sorted((int(zeros), int(group)) for zeros, group in named)

    @property
    def group_size(self) -> int | None:
        """m of the n:m patterns; None when unstructured."""
        return self.groups[0][1] if self.groups else None

    @property
    def named(self) -> str:
        """The pattern or the set as messages name it, e.g. "patterns 1:4, 2:4"."""
        if self.patterns is None:
            return f"pattern {self.pattern}"
        return "patterns " + ", ".join(f"{zeros}:{group}" for zeros, group in self.groups)

    def misfit(self, ratio: float, method: str) -> tuple[str, str] | None:
        """Why a method cannot meet a ratio with the n:m patterns, and which it can; None if it can.

        Only a method that searches gives matrices different patterns of a set.
        """
        shares = [zeros / group for zeros, group in self.groups]
        mixes = "database" in METHODS[method].needs
        fits = any(abs(ratio * group - zeros) <= 1e-6 for zeros, group in self.groups)
        if fits or not shares or (mixes and shares[0] < ratio < shares[-1]):
            return None
        told = f"ratio {ratio} contradicts pruning.{self.named}, "
        if self.patterns is None:
            zeros, group = self.groups[0]
            return f"{told}which is {zeros} zeros in every group of {group}", f"{shares[0]:.10g}"
        if mixes:
            return f"{told}which {method} mixes", f"from {shares[0]:.10g} to {shares[-1]:.10g}"
        one = ", ".join(f"{share:.10g}" for share in shares)
        return f"{told}of which {method} gives all matrices the same one", one


class PruneParameters(Section):
    """What only the final pruning needs: a change here builds no database again."""

    refine: Literal["none", "least_squares", "admm"] = Field(
        "none", description="solve for the kept weights again on the final mask of the OBS methods: exactly, or by ADMM"
    )
    outlier_threshold: float = Field(
        5.0, gt=1.0, description="owl: an outlier is this many times the mean |w| * ||x|| of a block"
    )
    outlier_spread: float = Field(
        0.08, ge=0.0, le=0.5, description="owl: ratios differ by at most twice this between blocks"
    )
    protect_first: int = Field(
        0, ge=0, description="llm_pruner: first blocks that stay whole; above 0 removed parts are stored as zeros"
    )
    protect_last: int = Field(0, ge=0, description="llm_pruner: last blocks that stay whole, too")
    keep_last_block: bool = Field(
        True, description="short_lvlm, shortgpt, sleb: never remove the last block (the first never goes)"
    )
    important_tokens: float = Field(
        0.2, gt=0.0, le=1.0, description="short_lvlm: share of tokens per modality that ranks blocks"
    )
    compensation: Literal["scp", "replaceme", "none"] = Field(
        "scp", description="short_lvlm: what is folded into the block before removed ones (published: scp)"
    )
    components: int = Field(8, ge=1, description="short_lvlm: singular vectors that scp keeps")


class SearchParameters(Section):
    """Evolution of the pruning policy (Algorithm 1) and of the projector."""

    candidates: int = Field(16, ge=2, description="policies of a round (paper: 16): round 1 evaluates them all; from round 2 on `candidates - survivors` new policies are evaluated, at least one, beside the survivors")
    rounds: int = Field(10, ge=1, description="rounds (paper: 10)")
    survivors: int = Field(4, ge=1, description="the top k that stay and have offspring")
    mutation: float = Field(
        0.1, ge=0.0, le=1.0, description="probability that a gene moves one level"
    )
    offsets: tuple[float, ...] = Field(
        (-0.1, -0.05, 0.0, 0.05, 0.1), min_length=1, description="levels a matrix may take, relative to the target ratio"
    )
    band: tuple[float, float] = Field(
        (0.0, 0.01), description="allowed mean sparsity, relative to the target ratio (paper: [-0.01, 0.01])"
    )
    granularity: Literal["matrix", "block"] = Field(
        "matrix", description="one ratio per matrix, or one per decoder block"
    )
    fitness: Literal["kl", "nll"] = Field(
        "kl", description="proxy loss: KL to the dense model, or negative log-likelihood (paper)"
    )
    kl_tokens: int | None = Field(
        None, ge=1, description="most likely tokens of the dense model kept per position for the KL, the rest as one; null keeps all"
    )
    fitness_data: Literal["text", "text_and_pairs"] = Field(
        "text_and_pairs", description="what the proxy loss is measured on (paper: text)"
    )
    complexity: Literal["mean_log_norm", "geometric_mean"] = Field(
        "mean_log_norm", description="transform of the product of Frobenius norms, equation (3)"
    )
    eta: float = Field(0.5, ge=0.0, description="weight of the structural risk (paper: 0.5)")
    evolve_projector: bool = Field(True, description="evolve the vision projector between rounds")
    projector_loss: Literal["kl", "nll"] = Field(
        "kl", description="projector's loss: KL to the dense model, or negative log-likelihood of the answers"
    )
    projector_steps: int = Field(8, ge=1, description="AdamW steps a round")
    projector_learning_rate: float = Field(1e-4, gt=0.0, description="AdamW learning rate")
    projector_batch: int = Field(32, ge=1, description="image-text pairs in a step")
    neighbours: int = Field(
        5, ge=1, description="nearest neighbours in the importance weight, equation (7)"
    )
    multi_step: float = Field(
        1.0, gt=0.0, le=1.0, description="share of the proxy on which all offspring are scored first; 1 turns it off"
    )
    multi_step_keep: int = Field(
        8, ge=1, description="offspring that are scored on the whole proxy when multi_step is below 1"
    )
    patience: int | None = Field(None, ge=1, description="stop after this many rounds without gain")
    max_seconds: float | None = Field(
        None, gt=0.0, description="stop at the first end of a round after this time"
    )
    seed: int = Field(0, ge=0, description="seed of the search")

    @model_validator(mode="after")
    def parts_fit(self) -> Self:
        if self.band[0] > self.band[1]:
            raise ValueError(f"band {list(self.band)}: the lower end lies above the upper end")
        if self.survivors > self.candidates:
            raise ValueError(f"survivors {self.survivors} exceed candidates {self.candidates}")
        if len(set(self.offsets)) != len(self.offsets):
            raise ValueError(f"offsets {list(self.offsets)} repeat a level")
        return self


class JudgeParameters(Section):
    """The model that grades answers to MM-Vet and LLaVA-Bench; its key is OPENAI_API_KEY."""

    model: str | None = Field(
        None, min_length=1, description="the judge's model; null for the one of the published numbers"
    )
    base_url: str | None = Field(
        None, min_length=1, description="OpenAI-compatible endpoint; null for OpenAI's own"
    )
    runs: int = Field(1, ge=1, description="judgements of each answer (MM-Vet paper: 5; LLaVA: 3)")
    parallel: int = Field(8, ge=1, description="requests under way at the same time")
    attempts: int = Field(6, ge=1, description="tries of one request before it is given up")
    timeout: float = Field(60.0, gt=0.0, description="seconds until a request counts as failed")


class EvaluationParameters(Section):
    """What a pruned model is measured on."""

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
    questions: int | None = Field(None, ge=1, description="number of test questions; null for all")
    batch_size: int = Field(64, ge=1, description="questions in a forward pass")
    new_tokens: int | None = Field(
        None, ge=1, description="tokens at which an answer is cut; null for the benchmark's own"
    )
    text_segments: int = Field(64, ge=1, description="held-out text segments for the text loss")
    judge: JudgeParameters = JudgeParameters()

    @model_validator(mode="after")
    def benchmarks_have_data(self) -> Self:
        names = self.named_benchmarks
        if len(set(names)) != len(names):
            raise ValueError(f"benchmarks {list(names)} name one twice")
        for name in names:
            if name not in self.data:
                raise ValueError(f"benchmark {name} needs its folder or hub id in data")
        return self

    @property
    def named_benchmarks(self) -> tuple[BenchmarkName, ...]:
        """All benchmarks but the demo one, the main one first."""
        return (() if self.benchmark == "demo" else (self.benchmark,)) + self.benchmarks


class ExportParameters(Section):
    """The exported model and its speed."""

    runtimes: tuple[RuntimeName, ...] = Field(
        ("deepsparse", "onnxruntime"), min_length=1, description="runtimes that are measured"
    )
    prompt_tokens: int = Field(128, ge=8, description="length of the prefill graph, in tokens")
    context: int = Field(
        256, ge=16, description="length of the KV cache in the decode graph, in tokens"
    )
    threads: int = Field(1, ge=1, description="threads of a runtime")
    repetitions: int = Field(30, ge=3, description="timed repetitions; medians are reported")
    answers: int = Field(
        8, ge=1, description="test questions answered end to end and compared token by token"
    )
    new_tokens: int = Field(8, ge=1, description="tokens generated for each of them")

    @model_validator(mode="after")
    def context_holds_prompt(self) -> Self:
        if self.prompt_tokens + self.new_tokens > self.context:
            raise ValueError(
                f"context {self.context} is shorter than prompt_tokens {self.prompt_tokens} "
                f"+ new_tokens {self.new_tokens}"
            )
        return self


class TrackingParameters(Section):
    """MLflow."""

    uri: str = Field("sqlite:///mlflow.db", min_length=1, description="MLflow tracking URI")
    experiment: str = Field(
        "efficientllava", min_length=1, description="experiment that holds one run per pruned model"
    )
    registered_model: str = Field(
        "efficientllava",
        min_length=1,
        description="registered model that holds one version per pruned model",
    )
    champion_ratio: Ratio | None = Field(
        None,
        description="ratio at which the most accurate model becomes `champion`; null for the first of `ratios`",
    )


class ExperimentParameters(Section):
    """Tables and figures (`make table1` ... `make compensation`), measured over seeds."""

    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 2),
        min_length=1,
        description="a seed is one of the demo model, the proxy data and the search",
    )
    segments: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (16, 32, 64, 128), min_length=1, description="figure 3: numbers of text segments"
    )
    segment_lengths: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        (64, 128, 256, 512), min_length=1, description="figure 3: tokens in a segment"
    )


class Parameters(Section):
    """All of params.yaml."""

    model: ModelParameters = ModelParameters()
    proxy: ProxyParameters = ProxyParameters()
    pruning: PruningParameters = PruningParameters()
    prune: PruneParameters = PruneParameters()
    search: SearchParameters = SearchParameters()
    evaluation: EvaluationParameters = EvaluationParameters()
    export: ExportParameters = ExportParameters()
    tracking: TrackingParameters = TrackingParameters()
    experiments: ExperimentParameters = ExperimentParameters()
    machine: MachineParameters = MachineParameters()
    methods: tuple[MethodName, ...] = Field(
        ("magnitude", "sparsegpt", "efficientllava"),
        min_length=1,
        description="methods that are compared; dense is always among them",
    )
    ratios: tuple[Ratio, ...] = Field(
        (0.5,),
        min_length=1,
        description="target ratios: the share of zeros in the language model's decoder",
    )

    @model_validator(mode="after")
    def lists_do_not_repeat(self) -> Self:
        for name, values in (("methods", self.methods), ("ratios", self.ratios)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} {list(values)} names one twice")
        return self

    @model_validator(mode="after")
    def pattern_fits_methods(self) -> Self:
        misfits = [name for name in self.methods if not METHODS[name].takes_pattern]
        if self.pruning.group_size is not None and misfits:
            raise ValueError(
                f"pruning.{self.pruning.named} cannot be had from {', '.join(misfits)}: "
                "use `unstructured`, or leave them out of methods"
            )
        return self

    @model_validator(mode="after")
    def pattern_fits_ratios(self) -> Self:
        for name in self.methods:
            for ratio in self.ratios:
                if (misfit := self.pruning.misfit(ratio, name)) is not None:
                    raise ValueError(f"{misfit[0]}: use ratios: [{misfit[1]}]")
        return self

    def levels(self, ratio: float) -> list[float]:
        """The ratios a matrix may take at a target ratio: C of the paper, clipped to [0, 1].

        With n:m these are the patterns' n/m alone: one pattern leaves nothing to vary.
        """
        if self.pruning.groups:
            return [zeros / group for zeros, group in self.pruning.groups]
        levels = sorted({round(ratio + offset, 4) for offset in self.search.offsets})
        return [level for level in levels if 0.0 <= level <= 1.0]
