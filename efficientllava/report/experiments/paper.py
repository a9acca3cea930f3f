"""The paper's own numbers (tables 1 to 4), shown beside our measurements, never mixed with them.

EfficientLLaVA, CVPR 2025. Accuracies in per cent, as printed; docs/method.md, section 10, names the
slips.
"""

from __future__ import annotations

from dataclasses import dataclass

SQA_7B, V15_7B = "LLaVA-SQA-7B", "LLaVA-v1.5-7B"
PARTS = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12")


@dataclass(frozen=True)
class PaperRow:
    """One row of a table of the paper.

    Attributes:
        model: on which the paper measured it.
        method: by our name for it.
        ratio: target ratio; 0 for dense.
        accuracy: the average, per cent.
        achieved: the average ratio where the paper prints it.
        parts: accuracies by subject, context and grade, in the order of PARTS; empty if none.
    """

    model: str
    method: str
    ratio: float
    accuracy: float
    achieved: float | None = None
    parts: tuple[float, ...] = ()


TABLE1 = (
    PaperRow(SQA_7B, "sparsegpt", 0.5, 80.45, 0.50),
    PaperRow(SQA_7B, "auto_without_generalization", 0.5, 81.34, 0.49),
    PaperRow(SQA_7B, "efficientllava", 0.5, 83.05, 0.50),
)
TABLE2 = (
    PaperRow(SQA_7B, "no_evolution", 0.5, 81.07, 0.50),
    PaperRow(SQA_7B, "evolution_without_upper_bound", 0.5, 82.85, 0.51),
    PaperRow(SQA_7B, "efficientllava", 0.5, 83.05, 0.50),
)


def _row(model: str, method: str, ratio: float, *values: float) -> PaperRow:
    return PaperRow(model, method, ratio, values[-1], parts=values[:-1])


TABLE3 = (
    _row(SQA_7B, "dense", 0.0, 89.39, 96.06, 85.64, 88.71, 87.65, 88.50, 90.93, 87.80, 89.91),
    _row(SQA_7B, "llm_pruner", 0.3, 39.34, 27.22, 47.55, 39.69, 34.56, 43.76, 38.22, 40.21, 38.93),
    _row(SQA_7B, "sparsegpt", 0.3, 88.28, 95.16, 85.45, 87.39, 86.71, 88.01, 89.54, 88.00, 88.99),
    _row(
        SQA_7B, "efficientllava", 0.3, 89.39, 93.36, 86.45, 88.51, 86.47, 89.34, 89.98, 88.53, 89.46
    ),
    _row(SQA_7B, "llm_pruner", 0.4, 0.18, 0.11, 0.64, 0.20, 0.15, 0.49, 0.18, 0.46, 0.28),
    _row(SQA_7B, "sparsegpt", 0.4, 80.73, 89.65, 79.82, 80.40, 80.17, 81.32, 83.99, 79.43, 82.36),
    _row(
        SQA_7B, "efficientllava", 0.4, 89.17, 91.34, 85.37, 88.27, 85.57, 88.57, 89.39, 87.54, 88.73
    ),
    _row(SQA_7B, "sparsegpt", 0.5, 80.28, 89.54, 73.45, 79.23, 78.98, 77.84, 82.56, 76.66, 80.45),
    _row(
        SQA_7B, "efficientllava", 0.5, 83.61, 90.44, 75.91, 82.80, 83.54, 79.51, 84.73, 80.03, 83.05
    ),
    _row(V15_7B, "dense", 0.0, 62.57, 69.07, 65.55, 62.81, 63.26, 63.90, 68.65, 57.61, 64.70),
    _row(V15_7B, "llm_pruner", 0.3, 21.67, 11.36, 12.73, 23.17, 21.52, 13.45, 16.30, 18.79, 17.19),
    _row(V15_7B, "sparsegpt", 0.3, 58.88, 68.05, 63.45, 59.24, 61.87, 61.39, 65.12, 56.36, 61.99),
    _row(
        V15_7B, "efficientllava", 0.3, 64.03, 67.15, 69.36, 63.20, 62.96, 68.9, 68.98, 60.84, 66.07
    ),
    _row(V15_7B, "llm_pruner", 0.4, 0.18, 0.11, 0.45, 0.20, 0.15, 0.35, 0.18, 0.33, 0.24),
    _row(V15_7B, "sparsegpt", 0.4, 56.97, 65.80, 60.55, 57.04, 59.44, 58.40, 63.44, 63.13, 59.75),
    _row(
        V15_7B, "efficientllava", 0.4, 60.35, 67.27, 66.91, 60.26, 61.77, 64.53, 66.74, 57.68, 63.50
    ),
    _row(V15_7B, "sparsegpt", 0.5, 53.51, 57.71, 56.82, 54.01, 54.64, 54.98, 56.86, 52.34, 55.25),
    _row(
        V15_7B, "efficientllava", 0.5, 56.57, 56.13, 60.55, 56.79, 54.24, 58.54, 59.73, 53.53, 57.51
    ),
)

TABLE4: dict[str, tuple[PaperRow, ...]] = {
    "VizWiz": (
        PaperRow(V15_7B, "dense", 0.0, 50.05),
        PaperRow(V15_7B, "llm_pruner", 0.3, 20.85),
        PaperRow(V15_7B, "llm_pruner", 0.4, 7.30),
        PaperRow(V15_7B, "llm_pruner", 0.5, 0.00),
        PaperRow(V15_7B, "sparsegpt", 0.3, 46.43),
        PaperRow(V15_7B, "sparsegpt", 0.4, 41.90),
        PaperRow(V15_7B, "sparsegpt", 0.5, 38.61),
        PaperRow(V15_7B, "efficientllava", 0.3, 52.70),
        PaperRow(V15_7B, "efficientllava", 0.4, 52.19),
        PaperRow(V15_7B, "efficientllava", 0.5, 50.28),
    ),
    "MM-Vet": (
        PaperRow(V15_7B, "dense", 0.0, 35.40),
        PaperRow(V15_7B, "llm_pruner", 0.3, 14.30),
        PaperRow(V15_7B, "llm_pruner", 0.4, 0.10),
        PaperRow(V15_7B, "llm_pruner", 0.5, 0.00),
        PaperRow(V15_7B, "sparsegpt", 0.3, 21.20),
        PaperRow(V15_7B, "sparsegpt", 0.4, 20.30),
        PaperRow(V15_7B, "sparsegpt", 0.5, 17.90),
        PaperRow(V15_7B, "efficientllava", 0.3, 33.80),
        PaperRow(V15_7B, "efficientllava", 0.4, 33.00),
        PaperRow(V15_7B, "efficientllava", 0.5, 31.70),
    ),
    "LLaVA-Bench": (
        PaperRow(V15_7B, "dense", 0.0, 55.90),
        PaperRow(V15_7B, "llm_pruner", 0.3, 37.70),
        PaperRow(V15_7B, "llm_pruner", 0.4, 29.30),
        PaperRow(V15_7B, "llm_pruner", 0.5, 22.70),
        PaperRow(V15_7B, "sparsegpt", 0.3, 57.90),
        PaperRow(V15_7B, "sparsegpt", 0.4, 52.50),
        PaperRow(V15_7B, "sparsegpt", 0.5, 48.80),
        PaperRow(V15_7B, "efficientllava", 0.3, 58.40),
        PaperRow(V15_7B, "efficientllava", 0.4, 54.50),
        PaperRow(V15_7B, "efficientllava", 0.5, 53.00),
    ),
}
