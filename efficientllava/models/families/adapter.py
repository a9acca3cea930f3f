"""A model seen through its family's entry: blocks, prunable matrices, projector, head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from efficientllava.errors import UserError
from efficientllava.models.families.matrices import Matrix, matrices_of
from efficientllava.models.families.table import family_of, require_family


@dataclass(frozen=True)
class Adapter:
    """A model seen through its family's entry: its prunable parts, in order."""

    model: nn.Module
    language_model: nn.Module
    projector: nn.Module | None
    blocks: list[nn.Module]
    matrices: list[Matrix]

    @property
    def projector_state(self) -> dict[str, torch.Tensor]:
        """The projector's weights by name, as they lie in the model; empty where there is none."""
        return {} if self.projector is None else self.projector.state_dict()

    def load_projector(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copy weights into the projector; an empty state is that of a model without one.

        Raises:
            RuntimeError: the names or shapes are not those of the projector.
        """
        if self.projector is not None:
            self.projector.load_state_dict(dict(state))
        elif state:
            raise RuntimeError(f"no projector takes {', '.join(state)}")

    def of_block(self, block: int) -> list[list[Matrix]]:
        """The matrices of a decoder block, grouped by shared input."""
        groups: dict[int, list[Matrix]] = {}
        for matrix in self.matrices:
            if matrix.block == block:
                groups.setdefault(matrix.group, []).append(matrix)
        return [groups[index] for index in sorted(groups)]

    @property
    def device(self) -> torch.device:
        """The device of all but the blocks, which may be streamed."""
        return device_of(self.model)

    @property
    def head(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Hidden states [..., width] to logits [..., vocabulary].

        They are capped where Gemma 2 does, and scaled where Cohere and Granite do.
        """
        model: Any = self.model
        linear: nn.Module = model.get_output_embeddings()
        cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        scale = getattr(model, "logit_scale", None)
        if (divisor := getattr(model.config, "logits_scaling", None)) is not None:
            return lambda hidden: linear(hidden) / divisor
        if cap is not None:
            return lambda hidden: torch.tanh(linear(hidden) / cap) * cap
        if scale is not None:
            return lambda hidden: linear(hidden) * scale
        return linear

    @property
    def sizes(self) -> list[int]:
        """Number of weights of each prunable matrix, in order."""
        return [matrix.size for matrix in self.matrices]


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's inputs and of its input embeddings."""
    device: torch.device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    return device


def text_inputs(model: nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inputs of a model for text alone, in which no token sees the next one.

    Args:
        ids: [n, T] token ids.
    """
    inputs = {"input_ids": ids}
    if family_of(model.config).reads_both_ways:  # type: ignore[arg-type]
        inputs["token_type_ids"] = torch.ones_like(ids)
    return inputs


def adapter_for(model: nn.Module) -> Adapter:
    """Find the decoder blocks, prunable matrices and projector of a model.

    Raises:
        UserError: the model's family has no entry, or the model lacks what its entry names.
    """
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", type(model).__name__)
    family = require_family(model_type) if config is None else family_of(config)
    try:
        language_model = model.get_submodule(family.language_model)
        projector = _projector(model, family.projector)
        blocks = list(language_model.get_submodule(family.blocks).children())
        path = f"{family.language_model}.{family.blocks}"
        matrices = [
            matrix
            for index, block in enumerate(blocks)
            for matrix in matrices_of(
                f"{path}.{index}", index, block, family.input_groups, family.dense
            )
        ]
    except AttributeError as error:
        raise UserError(
            f"no decoder blocks known to us: {error}",
            where=f"model of type {model_type}",
            remedy="mend its entry in efficientllava/models/families.py",
        ) from error
    if not blocks:
        raise UserError("the language model has no decoder blocks", where=f"model {model_type}")
    return Adapter(model, language_model, projector, blocks, matrices)


@torch.no_grad()
def require_head(adapter: Adapter) -> None:
    """Check, for a family found by structure, that its head makes the model's logits.

    Raises:
        UserError: they differ: the model does more to its logits than we know.
    """
    model: Any = adapter.model
    tokens = torch.arange(8, device=adapter.device)[None]
    hidden = adapter.language_model(input_ids=tokens).last_hidden_state
    if not torch.equal(adapter.head(hidden), model(input_ids=tokens).logits):
        raise UserError(
            "the head, applied to the language model's outputs, does not give the model's logits",
            where="a family found by structure",
            remedy="this model needs a Family of its own (docs/models.md)",
        )


def _projector(model: nn.Module, paths: str | tuple[str, ...] | None) -> nn.Module | None:
    if paths is None:
        return None
    if isinstance(paths, str):
        return model.get_submodule(paths)
    return nn.ModuleList(model.get_submodule(path) for path in paths)
