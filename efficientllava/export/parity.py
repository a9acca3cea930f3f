"""What exported graphs compute against what PyTorch computes, number by number. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from efficientllava.errors import UserError
from efficientllava.export.decoding import ExportedModel, Reference

TOLERANCE = 1e-3
"""Largest absolute difference between float32 and float32 that is still called the same."""
SHARE = 0.1
"""Largest difference in 16-bit numbers, as a share of the largest number of PyTorch's result."""


class Differences:
    """The largest difference of each kind of result from PyTorch's."""

    def __init__(self, precision: str) -> None:
        self.exact = precision == "float32"
        self.worst: dict[str, float] = {}

    @property
    def tolerance(self) -> float:
        """TOLERANCE, or SHARE where numbers have 16 bits."""
        return TOLERANCE if self.exact else SHARE

    def compare(self, name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Take one result in; infinite where a number is NaN."""
        difference = float(np.abs(ours - theirs).max())
        if not self.exact:
            difference /= float(np.abs(theirs).max()) or 1.0
        # NaN would pass every comparison with a tolerance
        difference = float(np.nan_to_num(difference, nan=np.inf))
        self.worst[name] = max(self.worst.get(name, 0.0), difference)


def parity(
    model: ExportedModel, references: Sequence[Reference], precision: str = "float32"
) -> dict[str, float]:
    """Largest differences from PyTorch over all prompts: absolute, or as `SHARE` says.

    The decode steps are fed PyTorch's tokens, so that one differing choice does not hide what
    comes after it.

    Returns:
        features, prefill_logits and decode_logits; features only when a prompt has an image,
        decode_logits only when an answer has more than one token.
    """
    differences = Differences(precision)
    for reference in references:
        inputs = reference.inputs
        assert inputs is not None, "graphs are written of families with inputs alone"
        if reference.features is not None and inputs.pixel_values is not None:
            differences.compare("features", model.features(inputs.pixel_values), reference.features)
        decoding = model.decoding()
        logits = decoding.start(model.read(inputs))
        differences.compare("prefill_logits", logits, reference.logits[0])
        for token, expected in zip(reference.tokens, reference.logits[1:], strict=False):
            differences.compare("decode_logits", model.step(decoding, token), expected)
    return differences.worst


def require_parity(runtime: str, errors: Mapping[str, float], tolerance: float) -> None:
    """Refuse a model that computes something else.

    Raises:
        UserError: naming what differs and by how much.
    """
    beyond = {name: error for name, error in errors.items() if not error <= tolerance}
    if beyond:
        told = ", ".join(f"{name} by {error:.3g}" for name, error in beyond.items())
        raise UserError(
            f"the exported model differs from PyTorch: {told} (at most {tolerance:g} is allowed)",
            where=f"export, {runtime}",
            remedy=f"take {runtime} out of export.runtimes, or report the model: nothing was "
            "exported",
        )
