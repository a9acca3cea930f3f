"""One table: where each family keeps its decoder blocks, prunable matrices and projector.

A family of another package is a `Family` and an entry point in the group `efficientllava.families`
under its `model_type`. Its module is imported before transformers reads a checkpoint of that type,
and registers the model's classes with transformers (docs/architecture.md shows one).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from efficientllava.errors import UserError
from efficientllava.registry import FAMILIES

DECODER_GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj", "self_attn.out_proj"),
    ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z"),
    ("linear_attn.out_proj",),
    ("conv.in_proj",),
    ("conv.out_proj",),
    ("mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj"),
    ("mlp.down_proj",),
    ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
    ("mlp.shared_expert.down_proj",),
    ("feed_forward.w1", "feed_forward.w3"),
    ("feed_forward.w2",),
)
"""Prunable matrices of a decoder block by the names that transformers gives them.

A block has those that it has: blocks of one model may differ (attention in some, linear attention
or a convolution in others; keys and values that another block computes).
"""


@dataclass(frozen=True)
class Family:
    """Module paths of one `model_type`, from the model's root.

    Attributes:
        language_model: the decoder without its head.
        blocks: the list of decoder blocks, from `language_model`.
        input_groups: prunable matrices inside a block; those in one group read the same input
            and share one Hessian. Names that a block does not have are passed over.
        dense: linear layers inside a block that stay as they are (gates, small projections).
        projector: the module (projector, connector, merger) between vision tower and language
            model, or several of them; None for a model that reads text only.
        image_token: what stands for an image in a prompt, as the family's processor reads it;
            empty where there are no images.
    """

    language_model: str
    projector: str | tuple[str, ...] | None
    image_token: str = "<image>"
    blocks: str = "layers"
    input_groups: tuple[tuple[str, ...], ...] = DECODER_GROUPS
    dense: tuple[str, ...] = ()

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

QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
GLM_IMAGE = "<|begin_of_image|><|image|><|end_of_image|>"
DEEPSTACK = ("model.visual.merger", "model.visual.deepstack_merger_list")
GATES = ("linear_attn.in_proj_a", "linear_attn.in_proj_b", "mlp.shared_expert_gate")
"""A few numbers a token: gate and step width of linear attention, weight of a shared expert."""
PER_LAYER = ("per_layer_input_gate", "per_layer_projection")
"""Gemma 4's small projections of a block's own token embedding."""


def _pictured(
    projector: str | tuple[str, ...], image_token: str = "<image>", **more: Any
) -> Family:
    return Family("model.language_model", projector, image_token, **more)


OURS: dict[str, Family] = {
    "llava": _pictured("model.multi_modal_projector"),
    "llava_next": _pictured("model.multi_modal_projector"),
    "llava_onevision": _pictured("model.multi_modal_projector"),
    "vipllava": _pictured("model.multi_modal_projector"),
    "qwen2_vl": _pictured("model.visual.merger", QWEN_IMAGE),
    "qwen2_5_vl": _pictured("model.visual.merger", QWEN_IMAGE),
    "qwen3_vl": _pictured(DEEPSTACK, QWEN_IMAGE),
    "qwen3_5": _pictured("model.visual.merger", QWEN_IMAGE, dense=GATES),
    "qwen3_vl_moe": _pictured(DEEPSTACK, QWEN_IMAGE),
    "qwen3_5_moe": _pictured("model.visual.merger", QWEN_IMAGE, dense=GATES),
    "paligemma": _pictured("model.multi_modal_projector"),
    "gemma3": _pictured("model.multi_modal_projector", "<start_of_image>"),
    "gemma4": _pictured("model.embed_vision", "<|image|>", dense=PER_LAYER),
    "idefics3": Family("model.text_model", "model.connector"),
    "smolvlm": Family("model.text_model", "model.connector"),
    "internvl": _pictured("model.multi_modal_projector", "<IMG_CONTEXT>"),
    "mistral3": _pictured("model.multi_modal_projector", "[IMG]"),
    "glm4v": _pictured("model.visual.merger", GLM_IMAGE),
    "glm46v": _pictured("model.visual.merger", GLM_IMAGE),
    "cohere2_vision": _pictured("model.multi_modal_projector", "<|IMG_PATCH|>"),
    "aya_vision": _pictured("model.multi_modal_projector"),
    "lfm2_vl": _pictured("model.multi_modal_projector"),
    "llama": TEXT_ONLY,  # SmolLM2 too
    "mistral": TEXT_ONLY,
    "ministral": TEXT_ONLY,
    "ministral3": TEXT_ONLY,
    "qwen2": TEXT_ONLY,
    "qwen3": TEXT_ONLY,
    "qwen3_5_text": replace(TEXT_ONLY, dense=GATES),
    "qwen3_moe": TEXT_ONLY,
    "qwen3_5_moe_text": replace(TEXT_ONLY, dense=GATES),
    "mixtral": TEXT_ONLY,
    "olmoe": TEXT_ONLY,
    "gemma": TEXT_ONLY,
    "gemma2": TEXT_ONLY,
    "gemma3_text": TEXT_ONLY,
    "gemma4_text": replace(TEXT_ONLY, dense=PER_LAYER),
    "glm4": TEXT_ONLY,
    "cohere2": TEXT_ONLY,
    "lfm2": TEXT_ONLY,
    "olmo2": TEXT_ONLY,
    "phi3": replace(
        TEXT_ONLY,
        input_groups=(
            ("self_attn.qkv_proj",),
            ("self_attn.o_proj",),
            ("mlp.gate_up_proj",),
            ("mlp.down_proj",),
        ),
    ),
    "smollm3": TEXT_ONLY,
}
"""The hub's `-hf` layouts, by `model_type`."""


def known_families() -> str:
    """The model types that can be pruned, for messages."""
    return ", ".join(sorted(FAMILIES))


@dataclass(frozen=True)
class Matrix:
    """One prunable matrix [out, in] of the language model: a linear layer, or one expert's.

    Attributes:
        name: its path from the model's root, as in the checkpoint without `.weight`; of an expert
            with its number, `...experts.7.down_proj`.
        block: index of its decoder block.
        group: index of its input group inside the block.
        module: holds the parameter.
        parameter: its path from the model's root.
        expert: which one of the parameter [experts, out, in]; None for a linear layer.
    """

    name: str
    block: int
    group: int
    module: nn.Module
    parameter: str
    expert: int | None = None

    def weight_in(self, module: nn.Module) -> torch.Tensor:
        """The weight [out, in] in a module like the matrix's own, outside autograd, not copied."""
        weight: torch.Tensor = module.get_parameter(self.parameter.rsplit(".", 1)[1]).data
        return self.of(weight)

    def of(self, parameter: torch.Tensor) -> torch.Tensor:
        """The part of the parameter's values that is this matrix."""
        return parameter if self.expert is None else parameter[self.expert]

    @property
    def weight(self) -> torch.Tensor:
        """The weight [out, in], outside autograd, not copied."""
        return self.weight_in(self.module)

    def replace(self, weight: torch.Tensor) -> None:
        """Put another weight [out, in] in place of the old one; see `replace_weights`."""
        replace_weights([(self, weight)])

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.weight_in(self.module).numel()

    def inputs(self, args: tuple[Any, ...], tokens: torch.Tensor) -> torch.Tensor:
        """The rows [n, in] that enter this matrix when its module is called.

        Args:
            args: of the module's forward.
            tokens: [B, T] bool, the tokens that count; an expert sees those routed to it.
        """
        if self.expert is None:
            rows: torch.Tensor = args[0]
            return rows[tokens if rows.dim() == 3 else tokens.flatten()]
        hidden, chosen, _ = args
        rows = hidden[tokens.flatten() & (chosen == self.expert).any(dim=-1)]
        if self.parameter.endswith(EXPERTS[0]):
            return rows  # type: ignore[no-any-return]
        module: Any = self.module
        return module._apply_gate(functional.linear(rows, module.gate_up_proj[self.expert]))  # type: ignore[no-any-return]


EXPERTS = ("gate_up_proj", "down_proj")
"""The parameters [experts, out, in] of a mixture of experts."""


def replace_weights(new: Sequence[tuple[Matrix, torch.Tensor]]) -> None:
    """Put other weights [out, in] in place of matrices' old ones, which stay as they were.

    Of experts, whose weights share a parameter, it is copied once in a call.

    Raises:
        ValueError: a weight has another shape than its matrix.
    """
    copied: dict[str, torch.Tensor] = {}
    for matrix, weight in new:
        old = matrix.weight
        if weight.shape != old.shape:
            raise ValueError(f"{matrix.name}: {tuple(weight.shape)} for {tuple(old.shape)}")
        weight = weight.to(old.device, old.dtype)
        parameter = matrix.module.get_parameter(matrix.parameter.rsplit(".", 1)[1])
        if matrix.expert is None:
            parameter.data = weight
            continue
        if matrix.parameter not in copied:
            parameter.data = copied[matrix.parameter] = parameter.data.clone()
        copied[matrix.parameter][matrix.expert].copy_(weight)


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
        """Hidden states [..., width] to logits [..., vocabulary].

        They are capped where Gemma 2 does, and scaled where Cohere does.
        """
        model: Any = self.model
        linear: nn.Module = model.get_output_embeddings()
        cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        scale = getattr(model, "logit_scale", None)
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
        projector = _projector(model, family.projector)
        blocks = list(language_model.get_submodule(family.blocks).children())
        path = f"{family.language_model}.{family.blocks}"
        matrices = [
            matrix
            for index, block in enumerate(blocks)
            for matrix in _matrices(f"{path}.{index}", index, block, family)
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


def _projector(model: nn.Module, paths: str | tuple[str, ...] | None) -> nn.Module | None:
    if paths is None:
        return None
    if isinstance(paths, str):
        return model.get_submodule(paths)
    return nn.ModuleList(model.get_submodule(path) for path in paths)


def _matrices(path: str, index: int, block: nn.Module, family: Family) -> list[Matrix]:
    """The prunable matrices of a block.

    Raises:
        AttributeError: it has a linear layer that the family does not know, or none that it prunes.
    """
    linear = {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
    matrices = [
        Matrix(f"{path}.{name}", index, group, linear[name], f"{path}.{name}.weight")
        for group, names in enumerate(family.input_groups)
        for name in names
        if name in linear
    ]
    known = {name for names in family.input_groups for name in names}.union(family.dense)
    if unknown := sorted(linear.keys() - known):
        raise AttributeError(f"block {index} has linear layers of other names: {unknown[0]}")
    matrices += _expert_matrices(path, index, block, len(family.input_groups))
    if not matrices:
        raise AttributeError(f"block {index} has none of the matrices that are pruned")
    return matrices


def _expert_matrices(path: str, index: int, block: nn.Module, group: int) -> list[Matrix]:
    """The matrices of a block's experts; each has an input of its own: the tokens routed to it.

    Args:
        group: number of the first expert's input group.

    Raises:
        AttributeError: the experts are laid out in another way.
    """
    matrices = []
    for name, module in block.named_modules():
        stacked = [p for p, value in module.named_parameters(recurse=False) if value.dim() == 3]
        if not stacked or "experts" not in name:
            continue
        known = not (getattr(module, "is_transposed", True) or getattr(module, "has_bias", True))
        if sorted(stacked) != sorted(EXPERTS) or not known:
            raise AttributeError(f"block {index} has experts of another layout: {name}")
        for expert in range(module.get_parameter(EXPERTS[0]).shape[0]):
            for number, part in enumerate(EXPERTS):
                matrices.append(
                    Matrix(
                        f"{path}.{name}.{expert}.{part}",
                        index,
                        group + 2 * expert + number,
                        module,
                        f"{path}.{name}.{part}",
                        expert,
                    )
                )
    return matrices


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
