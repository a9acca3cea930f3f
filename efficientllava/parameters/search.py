"""Section `search`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from efficientllava.parameters.section import Section, Share


class SearchParameters(Section):
    """Evolution of the pruning policy (Algorithm 1) and of the projector."""

    candidates: int = Field(16, ge=2, le=100_000, description="policies of a round (paper: 16): round 1 evaluates them all; from round 2 on `candidates - survivors` new policies are evaluated, at least one, beside the survivors")
    rounds: int = Field(10, ge=1, le=1_000_000, description="rounds (paper: 10)")
    survivors: int = Field(4, ge=1, le=100_000, description="the top k that stay and have offspring")
    mutation: float = Field(
        0.1, ge=0.0, le=1.0, description="probability that a gene moves one level"
    )
    offsets: tuple[Share, ...] = Field(
        (-0.1, -0.05, 0.0, 0.05, 0.1), min_length=1, description="levels a matrix may take, relative to the target ratio"
    )
    band: tuple[Share, Share] = Field(
        (0.0, 0.01), description="allowed mean sparsity, relative to the target ratio (paper: [-0.01, 0.01])"
    )
    granularity: Literal["matrix", "block"] = Field(
        "matrix", description="one ratio per matrix, or one per decoder block"
    )
    fitness: Literal["kl", "nll"] = Field(
        "kl", description="proxy loss: KL to the dense model, or negative log-likelihood (paper)"
    )
    kl_tokens: int | None = Field(
        None, ge=1, le=1_000_000, description="most likely tokens of the dense model kept per position for the KL, the rest as one; null keeps all"
    )
    fitness_data: Literal["text", "text_and_pairs"] = Field(
        "text_and_pairs", description="what the proxy loss is measured on (paper: text)"
    )
    complexity: Literal["mean_log_norm", "geometric_mean"] = Field(
        "mean_log_norm", description="transform of the product of Frobenius norms, equation (3)"
    )
    eta: float = Field(0.5, ge=0.0, le=1_000_000.0, description="weight of the structural risk (paper: 0.5)")
    evolve_projector: bool = Field(True, description="evolve the vision projector between rounds")
    projector_loss: Literal["kl", "nll"] = Field(
        "kl", description="projector's loss: KL to the dense model, or negative log-likelihood of the answers"
    )
    projector_steps: int = Field(8, ge=1, le=1_000_000, description="AdamW steps a round")
    projector_learning_rate: float = Field(1e-4, gt=0.0, le=10.0, description="AdamW learning rate")
    projector_batch: int = Field(32, ge=1, le=100_000, description="image-text pairs in a step")
    neighbours: int = Field(
        5, ge=1, le=100_000, description="nearest neighbours in the importance weight, equation (7)"
    )
    multi_step: float = Field(
        1.0, gt=0.0, le=1.0, description="share of the proxy on which all offspring are scored first; 1 turns it off"
    )
    multi_step_keep: int = Field(
        8, ge=1, le=100_000, description="offspring that are scored on the whole proxy when multi_step is below 1"
    )
    patience: int | None = Field(None, ge=1, le=1_000_000, description="stop after this many rounds without gain")
    max_seconds: float | None = Field(
        None, gt=0.0, le=1_000_000_000.0, description="begin no round that would end later than so many seconds after the start, set-up included; the first round always runs"
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
