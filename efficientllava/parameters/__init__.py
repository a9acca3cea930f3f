"""The pydantic model of params.yaml: every parameter, its bounds and what it does, once."""

from __future__ import annotations

from efficientllava.parameters.evaluation import (
    EvaluationParameters,
    ExportParameters,
    JudgeParameters,
)
from efficientllava.parameters.machine import MachineParameters
from efficientllava.parameters.model import DemoParameters, ModelParameters, ProxyParameters
from efficientllava.parameters.pipeline import ExperimentParameters, TrackingParameters
from efficientllava.parameters.pruning import (
    AllocationParameters,
    FinalizeParameters,
    ObsParameters,
)
from efficientllava.parameters.search import SearchParameters
from efficientllava.parameters.section import (
    BenchmarkName,
    MainBenchmark,
    MethodName,
    Ratio,
    RuntimeName,
    Section,
)
from efficientllava.parameters.sensitivity import SensitivityParameters
from efficientllava.parameters.whole import Parameters

__all__ = [
    "AllocationParameters",
    "BenchmarkName",
    "DemoParameters",
    "EvaluationParameters",
    "ExperimentParameters",
    "ExportParameters",
    "FinalizeParameters",
    "JudgeParameters",
    "MachineParameters",
    "MainBenchmark",
    "MethodName",
    "ModelParameters",
    "ObsParameters",
    "Parameters",
    "ProxyParameters",
    "Ratio",
    "RuntimeName",
    "SearchParameters",
    "Section",
    "SensitivityParameters",
    "TrackingParameters",
]
