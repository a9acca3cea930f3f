"""Sections `tracking` and `experiments`: what only the pipeline needs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from efficientllava.parameters.section import Ratio, Section


class TrackingParameters(Section):
    """MLflow."""

    uri: str = Field("sqlite:///mlflow.db", min_length=1, description="MLflow tracking URI")
    artifacts: str | None = Field(
        None,
        min_length=1,
        description="where a new experiment's artifacts go, e.g. s3://bucket/mlflow; null: beside an SQLite file, or where the server says",
    )
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
    promote: Literal["auto", "ask", "never"] = Field(
        "auto",
        description="whether a model that passes every check takes `champion`: by itself, after `efficientllava promote VERSION`, or not at all",
    )
    promote_errors: float = Field(
        1.0,
        ge=0.0,
        le=10.0,
        description="how many standard errors of the difference, question by question, a candidate may lie below the champion, in accuracy and in answer loss; 0: not at all",
    )
    promote_requires: tuple[Literal["verified", "parity"], ...] = Field(
        ("verified", "parity"),
        description="what a candidate needs beside the comparison: a checkpoint whose record follows its policy; an export that answers as PyTorch does",
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
