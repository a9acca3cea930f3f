"""The methods that are compared: how each allots ratios and what it does to the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from efficientllava.errors import UserError
from efficientllava.parameters import SearchParameters


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes:
        name: as in params.yaml.
        allocation: where the ratio of each matrix comes from.
        update: what happens to the weights: nothing, masking the smallest, or OBS.
        changes: search parameters that the method fixes, for the ablations.
        upper_bound: weight candidates by equation (7); False sets every c_m to 1.
    """

    name: str
    allocation: Literal["uniform", "search"]
    update: Literal["none", "magnitude", "obs"]
    changes: tuple[tuple[str, Any], ...] = ()
    upper_bound: bool = True

    def search_parameters(self, parameters: SearchParameters) -> SearchParameters:
        """The search parameters with the method's own changes."""
        return parameters.model_copy(update=dict(self.changes))


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("dense", "uniform", "none"),
        Method("magnitude", "uniform", "magnitude"),
        Method("sparsegpt", "uniform", "obs"),
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
