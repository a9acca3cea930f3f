"""One table: where each family keeps its decoder blocks, prunable matrices and projector.

A family of another package is a `Family` and an entry point in the group `efficientllava.families`
under its `model_type`. Its module is imported before transformers reads a checkpoint of that type,
and registers the model's classes with transformers (docs/architecture.md shows one).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from efficientllava.errors import UserError
from efficientllava.registry import FAMILIES

DECODER_GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.qkv_proj"),
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
        reads_both_ways: a prompt is read in both directions, and text only forwards where the
            model is given `token_type_ids` of 1 (PaliGemma).
        note: how blocks or images differ from Llama's and LLaVA's.
        image_token: stands for an image in a prompt, as the family's processor reads it;
            empty where there are no images.
    """

    language_model: str
    projector: str | tuple[str, ...] | None
    image_token: str = "<image>"
    blocks: str = "layers"
    input_groups: tuple[tuple[str, ...], ...] = DECODER_GROUPS
    dense: tuple[str, ...] = ()
    reads_both_ways: bool = False
    note: str = ""

    @property
    def takes_images(self) -> bool:
        """Whether models of this family read images beside text."""
        return self.projector is not None

    @property
    def kind(self) -> str:
        """The kind of model in two or three words."""
        return "vision-language model" if self.takes_images else "text-only language model"


TEXT_ONLY = Family("model", None, "")
"""A causal language model: its decoder is `model`, its head `lm_head`."""

QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
GLM_IMAGE = "<|begin_of_image|><|image|><|end_of_image|>"
DEEPSTACK = ("model.visual.merger", "model.visual.deepstack_merger_list")
SEVERAL = "features enter between blocks; merger and deepstack mergers evolve together"
LINEAR = "linear attention beside attention"
EXPERTS = "each expert's matrices count as matrices; the router stays"
TORCHVISION = "images need torchvision"
SHARED = "blocks that share keys and values; inputs of each block's own"
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
    "qwen3_vl": _pictured(DEEPSTACK, QWEN_IMAGE, note=SEVERAL),
    "qwen3_5": _pictured("model.visual.merger", QWEN_IMAGE, dense=GATES, note=LINEAR),
    "qwen3_vl_moe": _pictured(DEEPSTACK, QWEN_IMAGE, note=f"{EXPERTS}; {SEVERAL}"),
    "qwen3_5_moe": _pictured(
        "model.visual.merger", QWEN_IMAGE, dense=GATES, note=f"{EXPERTS}; {LINEAR}"
    ),
    "paligemma": _pictured(
        "model.multi_modal_projector",
        reads_both_ways=True,
        note="reads the prompt in both directions; needs an image",
    ),
    "gemma3": _pictured("model.multi_modal_projector", "<start_of_image>"),
    "gemma4": _pictured("model.embed_vision", "<|image|>", dense=PER_LAYER, note=SHARED),
    "idefics3": Family("model.text_model", "model.connector"),
    "smolvlm": Family("model.text_model", "model.connector"),
    "internvl": _pictured("model.multi_modal_projector", "<IMG_CONTEXT>"),
    "mistral3": _pictured("model.multi_modal_projector", "[IMG]", note=TORCHVISION),
    "glm4v": _pictured("model.visual.merger", GLM_IMAGE, note="gate and up are one matrix"),
    "glm46v": _pictured("model.visual.merger", GLM_IMAGE, note="gate and up are one matrix"),
    "cohere2_vision": _pictured("model.multi_modal_projector", "<|IMG_PATCH|>", note=TORCHVISION),
    "aya_vision": _pictured("model.multi_modal_projector"),
    "lfm2_vl": _pictured(
        "model.multi_modal_projector", note=f"convolutions beside attention; {TORCHVISION}"
    ),
    "llama": TEXT_ONLY,  # SmolLM2 too
    "mistral": TEXT_ONLY,
    "ministral": TEXT_ONLY,
    "ministral3": TEXT_ONLY,
    "qwen2": TEXT_ONLY,
    "qwen3": TEXT_ONLY,
    "qwen3_5_text": replace(TEXT_ONLY, dense=GATES, note=LINEAR),
    "qwen3_moe": replace(TEXT_ONLY, note=EXPERTS),
    "qwen3_5_moe_text": replace(TEXT_ONLY, dense=GATES, note=f"{EXPERTS}; {LINEAR}"),
    "mixtral": replace(TEXT_ONLY, note=EXPERTS),
    "olmoe": replace(TEXT_ONLY, note=EXPERTS),
    "gemma": TEXT_ONLY,
    "gemma2": TEXT_ONLY,
    "gemma3_text": TEXT_ONLY,
    "gemma4_text": replace(TEXT_ONLY, dense=PER_LAYER, note=SHARED),
    "glm4": replace(TEXT_ONLY, note="gate and up are one matrix"),
    "cohere2": TEXT_ONLY,
    "lfm2": replace(TEXT_ONLY, note="convolutions beside attention"),
    "olmo2": TEXT_ONLY,
    "phi3": replace(TEXT_ONLY, note="q, k and v are one matrix, gate and up another"),
    "smollm3": TEXT_ONLY,
}
"""The hub's `-hf` layouts, by `model_type`."""


FOUND = "efficientllava_family"
"""The key of config.json that holds a family found by structure (`generic.py`)."""


def known_families() -> str:
    """The model types that can be pruned, for messages."""
    return ", ".join(sorted(FAMILIES))


def family_of(config: Any) -> Family:
    """The family of a model: found by structure earlier, or the entry of its type.

    Args:
        config: the content of config.json, or the model's configuration.

    Raises:
        UserError: its type has no entry; what config.json holds is no family.
    """
    content = config if isinstance(config, Mapping) else vars(config)
    if (found := content.get(FOUND)) is None:
        model_type = content.get("model_type") or getattr(config, "model_type", None)
        return require_family(str(model_type))
    try:
        return TypeAdapter(Family).validate_python(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{FOUND} is no family: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            where="config.json",
            remedy="remove the key and load the model with family generic again",
        ) from error


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
            remedy="try family generic, which finds the decoder by structure, or add a Family to "
            "efficientllava/models/families/table.py: paths of the language model, its list of "
            "blocks, the matrices that share an input, the projector (if it has one), and the "
            "image token of its prompts (docs/models.md)",
        )
    family: Family = FAMILIES[model_type]
    return family
