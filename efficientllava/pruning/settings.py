"""The parameters of one call of `prune`, checked against each other before anything is read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from efficientllava.allocation.search.policy import check_band
from efficientllava.errors import UserError, hint
from efficientllava.offload.devices import require_device
from efficientllava.parameters import ObsParameters, Parameters
from efficientllava.parsing import parse_parameters
from efficientllava.pruning.methods import MaskingMethod, StructuredMethod
from efficientllava.registry import METHODS

logger = logging.getLogger(__name__)

_OF_ROUNDS = {
    "candidates", "rounds", "survivors", "mutation", "offsets", "granularity", "multi_step",
    "multi_step_keep", "patience",
}  # fmt: skip
"""Parameters of section `search` that only the paper's search reads."""
SECTIONS = ("obs", "allocation", "finalize", "search", "sensitivity", "machine")
"""The sections of params.yaml that pruning one model reads."""


def require_kind(value: object, kind: type, name: str, remedy: str) -> None:
    """Report an argument of another type.

    Raises:
        UserError: as it says.
    """
    if not isinstance(value, kind):
        raise UserError(f"{type(value).__name__} is not what is needed here", name, remedy)


def settings(
    method: str,
    sparsity: float,
    parameters: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> Parameters:
    """All parameters of a call, checked against each other, before anything is read.

    Raises:
        UserError: naming what is unknown, out of bounds, or does not go together; the device is
            not there.
    """
    METHODS[str(method)]
    try:
        share = float(sparsity)
    except (TypeError, ValueError):
        share = -1.0
    if not 0.0 < share < 1.0:
        raise UserError(
            f"{sparsity} is not between 0 and 1",
            where="sparsity",
            remedy="0.5 makes half of the decoder's weights zero",
        )
    values = _sections(parameters or {})
    _require_pattern(values.get("obs", {}), share, method)
    machine = values.setdefault("machine", {})
    if device is not None:
        require_device(str(device), "device")
        if machine.setdefault("device", device) != device:
            raise UserError(
                f"two devices are named, {device} and {machine['device']}",
                where="device and machine.device",
                remedy="name one of them",
            )
    chosen = parse_parameters(
        {**values, "methods": [method], "ratios": [share]}, where="parameters"
    )
    where = "parameters, machine.device" if device is None else "device"
    require_device(chosen.machine.device, where)
    unread = _OF_ROUNDS & values.get("search", {}).keys()
    if unread and isinstance(METHODS[method], MaskingMethod | StructuredMethod):
        if getattr(METHODS[method], "allocation", None) != "search":
            named = ", ".join(f"search.{name}" for name in sorted(unread))
            logger.warning(
                "%s has no rounds of the paper's search: it does not read %s", method, named
            )
    if "database" in METHODS[method].needs:
        check_band(METHODS[method].levels(chosen, share), share, chosen.search.band)
    return chosen


def _sections(parameters: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    require_kind(parameters, Mapping, "parameters", 'write {"section": {"name": value}}')
    for name, section in parameters.items():
        if name not in SECTIONS:
            suggestion = hint(str(name), SECTIONS, "known here")
            raise UserError(f"unknown section {name} ({suggestion})", where="parameters")
        require_kind(section, Mapping, f"parameters, {name}", "write {name: value}")
    return {name: dict(section) for name, section in parameters.items()}


def _require_pattern(obs: dict[str, Any], share: float, method: str) -> None:
    """Check that the method makes n:m patterns, and that they can meet the ratio.

    What else is wrong, the parser reports.
    """
    try:
        asked = ObsParameters.model_validate(obs)
    except ValidationError:
        return
    if asked.group_size is not None and not METHODS[method].takes_pattern:
        able = ", ".join(name for name, known in METHODS.items() if known.takes_pattern)
        raise UserError(
            f"{method} makes no zeros in the pattern obs.{asked.named}",
            where="method",
            remedy=f"leave the pattern out, or name one of {able}",
        )
    misfit = asked.misfit(share, method)
    if misfit is not None:
        raise UserError(misfit[0], where="sparsity", remedy=f"give {misfit[1]}")
