"""Section `sensitivity`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from efficientllava.parameters.section import Section

HIGHEST = 0.95
"""No level above it is built: what is left of a matrix at 1 is nothing."""


class SensitivityParameters(Section):
    """Ratios by the sensitivity of every matrix (`sensitivity`, `efficientllava_plus`), and the importance of rows (`fisher_rows`)."""

    reach: float = Field(0.3, ge=0.0, le=1.0, description="levels a matrix may take lie at most so far from the target ratio, between 0 and 0.95")
    step: float = Field(0.05, ge=0.01, le=0.5, description="distance between two neighbouring levels")
    form: Literal["fisher", "scalar"] = Field(
        "fisher", description="cost of a level: mean of (g . dW x)^2, or the cheaper mean squared gradient x output error"
    )
    tokens: int = Field(2048, ge=1, le=1_000_000_000, description="text tokens that gradients see, those of the rows' importance too, in whole segments; at most half of the segments")
    pairs: int = Field(32, ge=0, le=1_000_000, description="image-text pairs that gradients see; at most half of the pairs")
    choice_tokens: int = Field(4096, ge=1, le=1_000_000_000, description="other text tokens, on which policies are compared")
    choice_pairs: int = Field(64, ge=0, le=1_000_000, description="other image-text pairs, on which policies are compared")
    corrections: int = Field(2, ge=0, le=1000, description="at most so many corrections at the pruned model; another one only while the last gained more than its error")
    trust: float = Field(0.1, gt=0.0, le=1.0, description="a correction moves a ratio at most so far")
    generations: int = Field(0, ge=0, le=1_000_000, description="generations of budget-neutral swaps after that; 0 leaves them out")
    offspring: int = Field(8, ge=1, le=100_000, description="policies of a generation; all are scored on the same tokens")
    patience: int = Field(3, ge=1, le=1_000_000, description="stop after this many generations without gain")
    projector_rounds: int = Field(2, ge=0, le=1000, description="rounds in which the projector moves for the best policies, while held-out pairs gain (`search.evolve_projector`)")
    seed: int = Field(0, ge=0, description="seed of drawn labels and of swaps")

    @model_validator(mode="after")
    def reach_holds_a_step(self) -> Self:
        if 0.0 < self.reach < self.step:
            raise ValueError(f"reach {self.reach} is shorter than step {self.step}: no level but the target")
        return self

    def levels(self, ratio: float) -> list[float]:
        """The ratios a matrix may take at a target ratio, which is one of them.

        Where no step below or above the target is left, 0 or the highest ratio takes its place:
        with levels on one side alone no policy but the uniform one has the target's zeros.
        """
        target = round(ratio, 4)
        count, highest = int(self.reach / self.step + 1e-9), max(HIGHEST, target)
        # adding 0.0 leaves no -0.0
        steps = (round(ratio + index * self.step, 4) + 0.0 for index in range(-count, count + 1))
        levels = {level for level in steps if 0.0 <= level <= highest}
        if count and min(levels) == target:
            levels.add(0.0)
        if count and max(levels) == target:
            levels.add(highest)
        return sorted(levels)
