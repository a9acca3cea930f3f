"""What a pruned checkpoint may differ in from the dense model it was made of."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from efficientllava.errors import UserError
from efficientllava.models.families import adapter_for
from efficientllava.pruning.finalize import require_kept_weights
from efficientllava.pruning.methods import OURS
from tests.conftest import random_llava

DENSE = "weight .* is not the one that transformers reads from the dense model"
NAMES = ["magnitude", "wanda", "sparsegpt", "llm_pruner", "shortgpt"]


def masked(scale: float = 1.0) -> PreTrainedModel:
    """Half of every prunable matrix is zero, the rest scaled."""
    model = random_llava()
    for matrix in adapter_for(model).matrices:
        matrix.replace(scale * matrix.weight * (matrix.weight > 0))
    return model


@pytest.mark.parametrize("name", NAMES)
def test_masked_weights_pass(name: str) -> None:
    require_kept_weights(random_llava(), masked(), OURS[name], {})


@pytest.mark.parametrize("name", NAMES)
def test_kept_weights_of_another_model(name: str) -> None:
    """Other kept weights are wrong only where the update leaves them as they are."""
    if name in ("magnitude", "wanda"):
        with pytest.raises(UserError, match=rf"layers\.0\.self_attn.* {DENSE[10:]}"):
            require_kept_weights(random_llava(), masked(0.5), OURS[name], {})
    else:
        require_kept_weights(random_llava(), masked(0.5), OURS[name], {})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "part",
    ["lm_head", "vision_tower", "multi_modal_projector", "embed_tokens", "language_model.norm"],
)
def test_untouched_weights(name: str, part: str) -> None:
    model = masked()
    changed = next(key for key in model.state_dict() if part in key)
    with torch.no_grad():
        model.get_parameter(changed).view(-1)[0] += 1
    with pytest.raises(UserError, match=changed):
        require_kept_weights(random_llava(), model, OURS[name], {})


@pytest.mark.parametrize("name", ["magnitude", "sparsegpt"])
def test_norms_of_blocks_and_dtypes(name: str) -> None:
    model = masked()
    with torch.no_grad():
        model.model.language_model.layers[1].input_layernorm.weight[0] += 1
    with pytest.raises(UserError, match=r"layers\.1\.input_layernorm"):
        require_kept_weights(random_llava(), model, OURS[name], {})
    with pytest.raises(UserError, match=DENSE):
        require_kept_weights(random_llava(), masked().to(torch.bfloat16), OURS[name], {})


def test_evolved_projector() -> None:
    model = masked()
    projector = adapter_for(model).projector
    with torch.no_grad():
        for value in projector.parameters():
            value += 1
    evolved = {name: value.double() for name, value in projector.state_dict().items()}
    require_kept_weights(random_llava(), model, OURS["sparsegpt"], evolved)
    with pytest.raises(UserError, match="multi_modal_projector"):
        require_kept_weights(random_llava(), masked(), OURS["sparsegpt"], evolved)


def test_missing_weights_and_removed_blocks() -> None:
    model = masked()
    del model.model.language_model.layers[2]
    require_kept_weights(random_llava(), model, OURS["shortgpt"], {})
    for name in ("magnitude", "sparsegpt"):
        with pytest.raises(UserError, match=r"layers\.2\."):
            require_kept_weights(random_llava(), model, OURS[name], {})
