"""What a pruned checkpoint may differ in from the dense model it was made of."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from efficientllava.errors import UserError
from efficientllava.models.families import adapter_for
from efficientllava.pruning.finalize import require_kept_weights
from tests.conftest import random_llava

DENSE = "weight .* is not the one that transformers reads from the dense model"
UPDATES = ["none", "magnitude", "wanda", "obs", "heads_and_channels", "blocks_by_influence"]


def masked(scale: float = 1.0) -> PreTrainedModel:
    """Half of every prunable matrix is zero, the rest scaled."""
    model = random_llava()
    for matrix in adapter_for(model).matrices:
        matrix.replace(scale * matrix.weight * (matrix.weight > 0))
    return model


@pytest.mark.parametrize("update", UPDATES)
def test_masked_weights_pass(update: str) -> None:
    require_kept_weights(random_llava(), masked(), update, {})


@pytest.mark.parametrize("update", UPDATES)
def test_kept_weights_of_another_model(update: str) -> None:
    """Other kept weights are wrong only where the update leaves them as they are."""
    if update in ("none", "magnitude", "wanda"):
        with pytest.raises(UserError, match=rf"layers\.0\.self_attn.* {DENSE[10:]}"):
            require_kept_weights(random_llava(), masked(0.5), update, {})
    else:
        require_kept_weights(random_llava(), masked(0.5), update, {})


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize(
    "name",
    ["lm_head", "vision_tower", "multi_modal_projector", "embed_tokens", "language_model.norm"],
)
def test_untouched_weights(update: str, name: str) -> None:
    model = masked()
    changed = next(key for key in model.state_dict() if name in key)
    with torch.no_grad():
        model.get_parameter(changed).view(-1)[0] += 1
    with pytest.raises(UserError, match=changed):
        require_kept_weights(random_llava(), model, update, {})


@pytest.mark.parametrize("update", ["magnitude", "obs"])
def test_norms_of_blocks_and_dtypes(update: str) -> None:
    model = masked()
    with torch.no_grad():
        model.model.language_model.layers[1].input_layernorm.weight[0] += 1
    with pytest.raises(UserError, match=r"layers\.1\.input_layernorm"):
        require_kept_weights(random_llava(), model, update, {})
    with pytest.raises(UserError, match=DENSE):
        require_kept_weights(random_llava(), masked().to(torch.bfloat16), update, {})


def test_evolved_projector() -> None:
    model = masked()
    projector = adapter_for(model).projector
    with torch.no_grad():
        for value in projector.parameters():
            value += 1
    evolved = {name: value.double() for name, value in projector.state_dict().items()}
    require_kept_weights(random_llava(), model, "obs", evolved)
    with pytest.raises(UserError, match="multi_modal_projector"):
        require_kept_weights(random_llava(), masked(), "obs", evolved)


def test_missing_weights_and_removed_blocks() -> None:
    model = masked()
    del model.model.language_model.layers[2]
    require_kept_weights(random_llava(), model, "blocks_by_influence", {})
    for update in ("magnitude", "obs"):
        with pytest.raises(UserError, match=r"layers\.2\."):
            require_kept_weights(random_llava(), model, update, {})
