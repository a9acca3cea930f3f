"""One table: where each family keeps its decoder blocks, prunable matrices and projector.

A family of another package is a `Family` and an entry point in the group `efficientllava.families`
under its `model_type`. Its module is imported before transformers reads a checkpoint of that type,
and registers the model's classes with transformers (docs/architecture.md shows one).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from efficientllava.errors import UserError
from efficientllava.registry import FAMILIES

LLAMA_GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


@dataclass(frozen=True)
class Family:
    """Module paths of one `model_type`, from the model's root.

    Attributes:
        language_model: the decoder without its head.
        blocks: the list of decoder blocks, from `language_model`.
        input_groups: prunable matrices inside a block; those in one group read the same input
            and share one Hessian.
        projector: the module (projector, connector, merger) between vision tower and language
            model; None for a model that reads text only.
        image_token: what stands for an image in a prompt, as the family's processor reads it;
            empty where there are no images.
    """

    language_model: str
    projector: str | None
    image_token: str = "<image>"
    blocks: str = "layers"
    input_groups: tuple[tuple[str, ...], ...] = LLAMA_GROUPS

    @property
    def takes_images(self) -> bool:
        """Whether models of this family read images beside text."""
        return self.projector is not None

    @property
    def kind(self) -> str:
        """What such a model is, in two or three words."""
        return "vision-language model" if self.takes_images else "text-only language model"


TEXT_ONLY = Family("model", None, "")
"""A causal language model: its decoder is `model`, its head `lm_head`."""

OURS: dict[str, Family] = {
    "llava": Family("model.language_model", "model.multi_modal_projector"),
    "llava_next": Family("model.language_model", "model.multi_modal_projector"),
    "qwen2_5_vl": Family(
        "model.language_model",
        "model.visual.merger",
        "<|vision_start|><|image_pad|><|vision_end|>",
    ),
    "paligemma": Family("model.language_model", "model.multi_modal_projector"),
    "idefics3": Family("model.text_model", "model.connector"),
    "smolvlm": Family("model.text_model", "model.connector"),
    "internvl": Family("model.language_model", "model.multi_modal_projector", "<IMG_CONTEXT>"),
    "llama": TEXT_ONLY,  # SmolLM2 too
    "mistral": TEXT_ONLY,
    "ministral": TEXT_ONLY,
    "qwen2": TEXT_ONLY,
    "qwen3": TEXT_ONLY,
    "gemma": TEXT_ONLY,
    "gemma2": TEXT_ONLY,
    "gemma3_text": TEXT_ONLY,
    "smollm3": TEXT_ONLY,
}
"""The hub's `-hf` layouts; the decoders of those with a projector are Llama, Mistral, Qwen 2 / 2.5
/ 3, Gemma, Gemma 2."""


def known_families() -> str:
    """The model types that can be pruned, for messages."""
    return ", ".join(sorted(FAMILIES))


@dataclass(frozen=True)
class Matrix:
    """One prunable matrix [out, in] of the language model.

    Attributes:
        name: its path from the model's root, as in the checkpoint without `.weight`.
        block: index of its decoder block.
        group: index of its input group inside the block.
        module: its layer; of a packed checkpoint a `sparse.SparseLinear`, which is only read.
    """

    name: str
    block: int
    group: int
    module: Any

    @property
    def weight(self) -> torch.Tensor:
        """The weight [out, in], outside autograd; a packed one is unpacked every time."""
        weight: torch.Tensor = self.module.dense() if self.packed else self.module.weight.data
        return weight

    @property
    def packed(self) -> bool:
        """Whether the layer holds no plain weight."""
        return not isinstance(self.module, nn.Linear)

    def replace(self, weight: torch.Tensor) -> None:
        """Put another weight [out, in] in place of the old one, which stays as it was.

        Raises:
            ValueError: it has another shape, or the layer is packed.
        """
        if self.packed:
            raise ValueError(f"{self.name} is packed")
        if weight.shape != self.weight.shape:
            raise ValueError(f"{self.name}: {tuple(weight.shape)} for {tuple(self.weight.shape)}")
        self.module.weight.data = weight.to(self.weight.device, self.weight.dtype)

    @property
    def size(self) -> int:
        """Number of weights."""
        size: int = self.module.in_features * self.module.out_features
        return size if self.packed else int(self.module.weight.numel())


@dataclass(frozen=True)
class Adapter:
    """A model seen through its family's entry: what is pruned, in order."""

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
        """Where the model computes: where all but its blocks lie, which may be streamed."""
        return device_of(self.model)

    @property
    def head(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Hidden states [..., width] to logits [..., vocabulary], capped where Gemma 2 does."""
        model: Any = self.model
        linear: nn.Module = model.get_output_embeddings()
        cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        if cap is None:
            return linear
        return lambda hidden: torch.tanh(linear(hidden) / cap) * cap

    @property
    def sizes(self) -> list[int]:
        """Number of weights of each prunable matrix, in order."""
        return [matrix.size for matrix in self.matrices]


def device_of(model: nn.Module) -> torch.device:
    """Where a model takes its inputs: the device of its input embeddings."""
    device: torch.device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    return device


def adapter_for(model: nn.Module) -> Adapter:
    """Find the decoder blocks, prunable matrices and projector of a model.

    Raises:
        UserError: the model's family has no entry, or the model lacks what its entry names.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    family = require_family(model_type)
    try:
        language_model = model.get_submodule(family.language_model)
        projector = None if family.projector is None else model.get_submodule(family.projector)
        blocks = list(language_model.get_submodule(family.blocks).children())
        matrices = [
            Matrix(
                f"{family.language_model}.{family.blocks}.{index}.{path}",
                index,
                group,
                _linear(block, path),
            )
            for index, block in enumerate(blocks)
            for group, paths in enumerate(family.input_groups)
            for path in paths
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


def require_family(model_type: str) -> Family:
    """The entry of a model type.

    Raises:
        UserError: saying which types are known and what an entry needs.
    """
    if model_type not in FAMILIES:
        near = difflib.get_close_matches(model_type, FAMILIES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"no decoder blocks known to us in models of type '{model_type}' "
            f"({hint}known: {known_families()})",
            where="model",
            remedy="add a Family to efficientllava/models/families.py: paths of the language "
            "model, its list of blocks, the matrices that share an input, the projector (if it "
            "has one), and the image token of its prompts (docs/models.md)",
        )
    family: Family = FAMILIES[model_type]
    return family


def _linear(block: nn.Module, path: str) -> nn.Module:
    module = block.get_submodule(path)
    if not isinstance(module, nn.Linear) and not hasattr(module, "dense"):
        raise AttributeError(f"{path} is a {type(module).__name__}, not a Linear")
    return module
