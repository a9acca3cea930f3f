"""All of params.yaml."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from efficientllava.parameters.evaluation import EvaluationParameters, ExportParameters
from efficientllava.parameters.machine import MachineParameters
from efficientllava.parameters.model import ModelParameters, ProxyParameters
from efficientllava.parameters.pipeline import ExperimentParameters, TrackingParameters
from efficientllava.parameters.pruning import (
    AllocationParameters,
    FinalizeParameters,
    ObsParameters,
)
from efficientllava.parameters.search import SearchParameters
from efficientllava.parameters.section import MethodName, Ratio, Section
from efficientllava.parameters.sensitivity import SensitivityParameters
from efficientllava.registry import METHODS


class Parameters(Section):
    """All of params.yaml."""

    model: ModelParameters = ModelParameters()
    proxy: ProxyParameters = ProxyParameters()
    obs: ObsParameters = ObsParameters()
    allocation: AllocationParameters = AllocationParameters()
    finalize: FinalizeParameters = FinalizeParameters()
    search: SearchParameters = SearchParameters()
    sensitivity: SensitivityParameters = SensitivityParameters()
    evaluation: EvaluationParameters = EvaluationParameters()
    export: ExportParameters = ExportParameters()
    tracking: TrackingParameters = TrackingParameters()
    experiments: ExperimentParameters = ExperimentParameters()
    machine: MachineParameters = MachineParameters()
    methods: tuple[MethodName, ...] = Field(
        ("magnitude", "sparsegpt", "efficientllava", "efficientllava_plus"),
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
        if self.obs.group_size is not None and misfits:
            raise ValueError(
                f"obs.{self.obs.named} cannot be had from {', '.join(misfits)}: "
                "use `unstructured`, or leave them out of methods"
            )
        return self

    @model_validator(mode="after")
    def pattern_fits_ratios(self) -> Self:
        for name in self.methods:
            for ratio in self.ratios:
                if (misfit := self.obs.misfit(ratio, name)) is not None:
                    raise ValueError(f"{misfit[0]}: use ratios: [{misfit[1]}]")
        return self

    def levels(self, ratio: float) -> list[float]:
        """The ratios a matrix may take at a target ratio: C of the paper, clipped to [0, 1].

        With n:m these are the patterns' n/m alone: one pattern leaves nothing to vary.
        """
        if self.obs.groups:
            return [zeros / group for zeros, group in self.obs.groups]
        levels = sorted({round(ratio + offset, 4) + 0.0 for offset in self.search.offsets})
        return [level for level in levels if 0.0 <= level <= 1.0]

    def wide_levels(self, ratio: float) -> list[float]:
        """The ratios a matrix may take at a target ratio in an allocation by sensitivity."""
        return self.levels(ratio) if self.obs.groups else self.sensitivity.levels(ratio)
