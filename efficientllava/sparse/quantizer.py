"""Packed checkpoints for transformers' `from_pretrained` and `save_pretrained`.

`efficientllava.models.when_imported` registers both classes when transformers' own are there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from efficientllava.errors import UserError
from efficientllava.models.packed import DAMAGED, PACKED, SECTION
from efficientllava.sparse.experts.files import converts_experts, expert_matrices
from efficientllava.sparse.experts.layer import SparseExperts
from efficientllava.sparse.experts.loading import put_experts, without_values
from efficientllava.sparse.inference import for_inference
from efficientllava.sparse.linear import SparseLinear
from efficientllava.sparse.names import names_in_model
from efficientllava.sparse.record import (
    Settings,
    metadata,
    settings_of,
    verify,
)
from efficientllava.sparse.tensor_file import Entry, checksum, entries_of


@register_quantization_config(PACKED)
class SparseConfig(QuantizationConfigMixin):
    """The section `quantization_config` of a packed checkpoint."""

    quant_method = PACKED

    def __init__(self, **section: Any) -> None:
        self.settings = settings_of(section, SECTION)

    def to_dict(self) -> dict[str, Any]:
        """The section as it stands in config.json."""
        return self.settings.section()

    def __iter__(self) -> Any:
        return iter(self.to_dict().items())


@register_quantizer(PACKED)
class SparseQuantizer(HfQuantizer):
    """Puts `SparseLinear` in the place of each packed layer, and checks files before they load."""

    requires_calibration = True  # packing needs pruned weights: only packed checkpoints load

    @property
    def settings(self) -> Settings:
        """What config.json says."""
        settings: Settings = self.quantization_config.settings
        return settings

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Note the dtype that is asked for: packed layers are cast when they are loaded."""
        self._dtype = dtype
        return dtype

    def _process_model_before_weight_loading(
        self,
        model: PreTrainedModel,
        checkpoint_files: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if not checkpoint_files:
            raise UserError("packed weights load from files alone", "from_pretrained")
        files = [Path(file) for file in checkpoint_files]
        with torch.device("cpu"):
            verify(files, self.settings, files[0].parent / "config.json")
        entries = {name: each for file in files for name, each in entries_of(file).items()}
        experts = expert_matrices(model, entries, self.settings.stacked)
        packed = self.settings.modules.keys()
        places = names_in_model(model, [f"{module}.weight" for module in packed])
        if packed & experts.keys():
            put_experts(model, experts, self.settings, entries)
        for module in packed - experts.keys():
            _put_sparse(model, places, module, self.settings.modules[module], entries)

    def update_weight_conversions(
        self, weight_conversions: list[Any], model: PreTrainedModel
    ) -> list[Any]:
        """Leave out those that would stack experts that lie apart in the model, too."""
        if any(isinstance(module, SparseExperts) for module in model.modules()):
            weight_conversions = [each for each in weight_conversions if not converts_experts(each)]
        conversions: list[Any] = super().update_weight_conversions(weight_conversions, model)
        return conversions

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        for module in model.modules():
            if isinstance(module, SparseLinear | SparseExperts):
                module.cast(self._dtype)
        for_inference(model, huge_pages=False)
        # without a backward pass nothing here is trained, and torch.compile would look for one
        return model.requires_grad_(False)

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> Any:
        for name, module in list(model.named_modules()):
            if isinstance(module, SparseExperts):
                model.set_submodule(name, module.dequantized(dtype))
        for name, module in list(model.named_modules()):
            if isinstance(module, SparseLinear):
                linear: Any = nn.Linear(
                    module.in_features, module.out_features, bias=False, device="meta"
                )
                linear.weight = nn.Parameter(module.dense().to(dtype), requires_grad=False)
                linear.bias = module.bias
                model.set_submodule(name, linear)
        return model

    def get_state_dict_and_metadata(
        self, model: PreTrainedModel
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """The weights as `save_pretrained` would take them, and their checksums.

        Those are of the names and config.json that it writes with `save_original_format`, which is
        its default; without, the checkpoint says that they differ when it is loaded.
        """
        state = model.state_dict()
        for name in model._keys_to_ignore_on_save or ():
            state.pop(name, None)
        written = remove_tied_weights_from_state_dict(dict(state), model)
        written = revert_weight_conversion(model, written)
        model.config.dtype = str(model.dtype).removeprefix("torch.")
        config = json.loads(model.config.to_json_string())
        checksums = {name: checksum(tensor) for name, tensor in written.items()}
        return state, metadata(checksums, config, {"format": "pt"}, len(checksums))

    def is_serializable(self) -> bool:
        """It can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """It cannot be trained."""
        return False

    @property
    def is_compileable(self) -> bool:
        """torch.compile sees the operators' fake implementations."""
        return True


def _put_sparse(
    model: PreTrainedModel,
    places: dict[str, str],
    module: str,
    shape: Sequence[int],
    entries: dict[str, Entry],
) -> None:
    """Replace a linear layer on the meta device by a packed one.

    Raises:
        UserError: the model has no such layer, or one of another shape.
    """
    name = places.get(f"{module}.weight", "").removesuffix(".weight")
    try:
        linear: nn.Module | None = model.get_submodule(name)
    except AttributeError:
        linear = None
    if not name or not isinstance(linear, nn.Linear):
        raise UserError(f"the model has no linear layer {module}", SECTION, DAMAGED)
    if list(linear.weight.shape) != list(shape):
        raise UserError(
            f"{module} is {list(shape)} packed, {list(linear.weight.shape)} in the model",
            SECTION,
            DAMAGED,
        )
    model.set_submodule(name, SparseLinear(without_values(module, shape, entries), linear.bias))
