"""The methods that are compared: one object each, which allots ratios and prunes the weights.

A method of another package has the attributes and functions of `Method` and an entry point in the
group `efficientllava.methods` (docs/architecture.md shows one).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

if TYPE_CHECKING:
    # at run time torch is imported when a method starts, not when its name is checked
    from efficientllava.allocation.context import Allocation, Context
    from efficientllava.allocation.sensitivity.allocate import Costs
    from efficientllava.calibration.opened import OpenModel
    from efficientllava.parameters import Parameters, SearchParameters

Need = Literal["database", "calibration", "gradients", "importance"]
"""`database`: the OBS solution of every matrix at every level; `calibration`: activations of the
proxy data; `gradients`: of the whole model; `importance`: of the rows of every matrix, which takes
gradients of its own."""


class Method(Protocol):
    """The interface of a method."""

    @property
    def name(self) -> str:
        """As in params.yaml."""

    @property
    def needs(self) -> frozenset[Need]:
        """See `Need`."""

    @property
    def structured(self) -> bool:
        """Whether parts are removed: the model changes its shape and lies in memory as a whole."""

    @property
    def takes_pattern(self) -> bool:
        """Whether an n:m pattern can be asked for."""

    @property
    def keeps_weights(self) -> bool:
        """Whether the weights that do not become zero stay as they are."""

    def levels(self, parameters: Parameters, ratio: float) -> list[float]:
        """The ratios a matrix may take at a target ratio; asked only of methods that need the
        database."""

    def evolves_projector(self, search: SearchParameters) -> bool:
        """Whether it needs image-text pairs, because it moves the vision projector."""

    def allocate(self, context: Context) -> Allocation:
        """Find the ratio of every matrix."""

    def apply(self, context: Context, opened: OpenModel, allocation: Allocation) -> dict[str, Any]:
        """Prune an open dense model in place.

        Returns:
            The record, JSON-able: `matrices` (rows as `sequential.matrix_row`), `policy`,
            `achieved_sparsity`, the losses of `measures.ProxyMeasures`, and whatever else belongs
            into pruning.json; `structure` where parts were removed.
        """


BY_COSTS = ("sensitivity", "output_error", "plus")
"""Allocations over wide levels, at exactly the budget."""


@dataclass(frozen=True)
class MaskingMethod:
    """Sets weights to zero in matrices that stay: an allocation of ratios and a criterion.

    Attributes:
        allocation: the same ratio for all matrices; by the outliers of each block; linear over the
            blocks; by the paper's search; by one knapsack of Fisher costs or of output errors; or
            all of these compared and corrected ("plus").
        criterion: which weights go: the smallest |w|, the smallest |w| * ||x||, or by OBS, which
            also updates the weights that stay.
        by_importance: with OBS, whether the rows of a matrix count by the Fisher information of
            their outputs, or all alike as SparseGPT's do.
        changes: search parameters that the method fixes, for the ablations.
        upper_bound: weight candidates by equation (7); False sets every c_m to 1.
    """

    name: str
    allocation: Literal[
        "uniform", "outliers", "slope", "search", "sensitivity", "output_error", "plus"
    ]
    criterion: Literal["magnitude", "wanda", "obs"]
    changes: Mapping[str, Any] = field(default_factory=dict)
    upper_bound: bool = True
    by_importance: bool = False
    structured = False

    @property
    def needs(self) -> frozenset[Need]:
        """See `Method`."""
        needs: set[Need] = set()
        if self.allocation in ("search", *BY_COSTS):
            needs.add("database")
        if self.allocation in ("sensitivity", "plus"):
            needs.add("gradients")
        if self.by_importance:
            needs.add("importance")
        if self.allocation not in ("uniform", "slope") or self.criterion != "magnitude":
            needs.add("calibration")
        return frozenset(needs)

    @property
    def takes_pattern(self) -> bool:
        """See `Method`: an n:m pattern fixes every ratio."""
        return self.allocation not in ("outliers", "slope")

    @property
    def keeps_weights(self) -> bool:
        """See `Method`: OBS updates them."""
        return self.criterion != "obs"

    def search_parameters(self, parameters: SearchParameters) -> SearchParameters:
        """The search parameters with the method's own changes."""
        return parameters.model_copy(update=dict(self.changes))

    def levels(self, parameters: Parameters, ratio: float) -> list[float]:
        """The ratios a matrix may take at a target ratio; none without a database."""
        if self.allocation in BY_COSTS:
            return parameters.wide_levels(ratio)
        return parameters.levels(ratio) if self.allocation == "search" else []

    def evolves_projector(self, search: SearchParameters) -> bool:
        """See `Method`."""
        moves = self.allocation in ("search", "plus")
        return moves and self.search_parameters(search).evolve_projector

    def allocate(self, context: Context) -> Allocation:
        """See `Method`."""
        if self.allocation == "uniform":
            from efficientllava.allocation.uniform import uniform

            return uniform(context)
        if self.allocation == "outliers":
            from efficientllava.allocation.owl import outliers

            return outliers(context)
        if self.allocation == "slope":
            from efficientllava.allocation.slope import sloped

            return sloped(context)
        if self.allocation in BY_COSTS:
            from efficientllava.allocation.sensitivity.allocate import allocated

            search = self.search_parameters(context.parameters.search)
            return allocated(context, search, cast("Costs", self.allocation), self.by_importance)
        from efficientllava.allocation.search.searched import searched

        parameters = self.search_parameters(context.parameters.search)
        return searched(context, parameters, self.upper_bound)

    def apply(self, context: Context, opened: OpenModel, allocation: Allocation) -> dict[str, Any]:
        """See `Method`."""
        from efficientllava.pruning.masked import prune_masked

        levels, searches = sorted(set(allocation.policy.values())), "database" in self.needs
        database = context.database(levels, self.by_importance) if searches else None
        search = self.search_parameters(context.parameters.search)
        parameters = context.parameters.model_copy(update={"search": search})
        return prune_masked(
            opened,
            context.proxy,
            self.criterion,
            allocation,
            parameters,
            database,
            context.progress,
            context.row_importance() if self.by_importance else None,
        )


@dataclass(frozen=True)
class StructuredMethod:
    """Removes heads and channels, or whole decoder blocks.

    Attributes:
        removal: "heads_and_channels" (LLM-Pruner), "blocks_by_important_tokens" (Short-LVLM),
            "blocks_by_influence" (ShortGPT) or "blocks_by_loss" (SLEB).
    """

    name: str
    removal: str
    structured = True
    takes_pattern = False
    keeps_weights = False

    def levels(self, parameters: Parameters, ratio: float) -> list[float]:
        """See `Method`: there are none."""
        return []

    @property
    def needs(self) -> frozenset[Need]:
        """See `Method`."""
        if self.removal == "heads_and_channels":
            return frozenset({"calibration", "gradients"})
        return frozenset({"calibration"})

    def evolves_projector(self, search: SearchParameters) -> bool:
        """See `Method`."""
        return False

    def allocate(self, context: Context) -> Allocation:
        """See `Method`: the target ratio; `apply` chooses the parts."""
        from efficientllava.allocation.uniform import uniform

        return uniform(context)

    def apply(self, context: Context, opened: OpenModel, allocation: Allocation) -> dict[str, Any]:
        """See `Method`."""
        from efficientllava.pruning.structured.structured import prune_structure

        return prune_structure(
            opened.adapter,
            context.proxy,
            self.removal,
            context.ratio,
            context.parameters,
            context.progress,
        )


OURS: dict[str, Method] = {
    method.name: method
    for method in (
        MaskingMethod("magnitude", "uniform", "magnitude"),
        MaskingMethod("wanda", "uniform", "wanda"),
        MaskingMethod("sparsegpt", "uniform", "obs"),
        MaskingMethod("owl", "outliers", "obs"),
        MaskingMethod("slope", "slope", "obs"),
        MaskingMethod("output_error", "output_error", "obs"),
        MaskingMethod("sensitivity", "sensitivity", "obs"),
        StructuredMethod("llm_pruner", "heads_and_channels"),
        StructuredMethod("short_lvlm", "blocks_by_important_tokens"),
        StructuredMethod("shortgpt", "blocks_by_influence"),
        StructuredMethod("sleb", "blocks_by_loss"),
        MaskingMethod("fisher_rows", "uniform", "obs", by_importance=True),
        MaskingMethod("efficientllava_plus", "plus", "obs", by_importance=True),
        MaskingMethod("plus_without_fisher_rows", "plus", "obs"),
        MaskingMethod("efficientllava", "search", "obs"),
        MaskingMethod("auto_without_generalization", "search", "obs", {"eta": 0.0}),
        MaskingMethod("no_evolution", "search", "obs", {"evolve_projector": False}),
        MaskingMethod("evolution_without_upper_bound", "search", "obs", upper_bound=False),
    )
}
