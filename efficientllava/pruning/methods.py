"""The methods that are compared: how each allots ratios and what it does to the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from efficientllava.errors import UserError
from efficientllava.parameters import SearchParameters

Update = Literal[
    "none",
    "magnitude",
    "wanda",
    "obs",
    "heads_and_channels",
    "blocks_by_important_tokens",
    "blocks_by_influence",
    "blocks_by_loss",
]
SMALLER: frozenset[str] = frozenset(
    {
        "heads_and_channels",
        "blocks_by_important_tokens",
        "blocks_by_influence",
        "blocks_by_loss",
    }
)
"""Updates that remove parts of the model; the others set weights to zero in matrices that stay."""


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes:
        name: as in params.yaml.
        allocation: where the ratio of each matrix comes from: the same for all, by the outliers
            of each block, or searched.
        update: what happens to the weights: nothing, masking the smallest (by |w|, or by
            |w| * ||x||), OBS, or the removal of heads and channels or of whole blocks.
        changes: search parameters that the method fixes, for the ablations.
        upper_bound: weight candidates by equation (7); False sets every c_m to 1.
    """

    name: str
    allocation: Literal["uniform", "outliers", "search"]
    update: Update
    changes: tuple[tuple[str, Any], ...] = ()
    upper_bound: bool = True

    @property
    def makes_smaller(self) -> bool:
        """Whether parts are removed, so that no mask pattern applies and matrices disappear."""
        return self.update in SMALLER

    def search_parameters(self, parameters: SearchParameters) -> SearchParameters:
        """The search parameters with the method's own changes."""
        return parameters.model_copy(update=dict(self.changes))


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("dense", "uniform", "none"),
        Method("magnitude", "uniform", "magnitude"),
        Method("wanda", "uniform", "wanda"),
        Method("sparsegpt", "uniform", "obs"),
        Method("owl", "outliers", "obs"),
        Method("llm_pruner", "uniform", "heads_and_channels"),
        Method("short_lvlm", "uniform", "blocks_by_important_tokens"),
        Method("shortgpt", "uniform", "blocks_by_influence"),
        Method("sleb", "uniform", "blocks_by_loss"),
        Method("efficientllava", "search", "obs"),
        Method("auto_without_generalization", "search", "obs", (("eta", 0.0),)),
        Method("no_evolution", "search", "obs", (("evolve_projector", False),)),
        Method("evolution_without_upper_bound", "search", "obs", upper_bound=False),
    )
}


def method_named(name: str) -> Method:
    """The method of a name.

    Raises:
        UserError: naming the methods there are.
    """
    if name not in METHODS:
        raise UserError(f"unknown method {name!r} (known: {', '.join(METHODS)})", where="methods")
    return METHODS[name]
