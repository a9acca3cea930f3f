"""Stage `prune`: the final pruned model, verified, as an ordinary transformers checkpoint.

In:  params pruning, prune, search; artifacts/model, proxy, database and the policy and projector of
     artifacts/search/METHOD-RATIO
Out: artifacts/pruned/METHOD-RATIO/ (checkpoint with pruning.json),
     artifacts/pruned_metrics/METHOD-RATIO.json (metrics) and .png
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

from efficientllava.pruning.methods import method_named
from tasks.runtime.stage import ARTIFACTS, WORK, Stage, run_stage

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from efficientllava.offload.blocks_on_disk import BlocksOnDisk

GRADIENTS = 3
"""Taylor importance holds weights, their gradients and the product of both."""


def prune(stage: Stage) -> None:
    """Prune with the policy, save, load again and compare."""
    from efficientllava import __version__
    from efficientllava.data.proxy import load_proxy
    from efficientllava.database.build import open_database
    from efficientllava.files import folder_digest, load_tensors, read_json, write_json
    from efficientllava.models.checkpoint import load_model, save_checkpoint
    from efficientllava.models.families import adapter_for
    from efficientllava.offload.blocks_on_disk import blocks_on_disk
    from efficientllava.pruning.finalize import (
        prune_finally,
        require_kept_weights,
        require_same_logits,
    )
    from efficientllava.report.plots import sparsity_plot
    from tasks.runtime.devices import block_by_block, whole

    method = method_named(stage.method)
    search = stage.folder("search")
    policy = read_json(search / "policy.json")["policy"]
    dense = ARTIFACTS / "model"
    proxy = load_proxy(ARTIFACTS / "proxy")
    projector = load_tensors(search / "projector.safetensors")
    found, folder, work = method.allocation == "search", stage.folder("pruned"), WORK / "prune"
    with ExitStack() as ends:
        on_disk: BlocksOnDisk | None = None
        if method.makes_smaller:
            # what is left has no place in the dense model's files
            held = GRADIENTS if method.update == "heads_and_channels" else 1
            adapter = adapter_for(whole(stage, dense, held))
        else:
            kept = block_by_block(stage, dense, work, proxy, levels=1, losses=2)
            adapter, on_disk = ends.enter_context(kept)
        model, device = cast("PreTrainedModel", adapter.model), adapter.device
        record = prune_finally(
            adapter,
            proxy,
            open_database(ARTIFACTS / "database", sorted(set(policy.values()))) if found else None,
            method.update,
            policy,
            projector,
            stage.parameters.pruning,
            method.search_parameters(stage.parameters.search),
            stage.progress,
            stage.parameters.prune,
            on_disk,
        )
        record |= {
            "method": stage.method,
            "ratio": stage.ratio,
            "digests": {"model": folder_digest(dense), "proxy": proxy.digest},
            "version": __version__,
        }
        write = None if on_disk is None else on_disk.save_weights
        save_checkpoint(model, dense, folder, {"pruning.json": record}, write)
        reloaded = load_model(folder)
        require_kept_weights(load_model(dense), reloaded, method.update, projector)
        used = None if device.type == "cpu" else device
        with blocks_on_disk(adapter_for(reloaded), folder, work / "reloaded", used):
            require_same_logits(model, reloaded, proxy)

    measured = {key: value for key, value in record.items() if isinstance(value, (int, float))}
    measured["bytes_on_disk"] = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    measured["parameters"] = model.num_parameters()
    measured.pop("ratio")
    metrics = ARTIFACTS / "pruned_metrics" / stage.cell
    sparsity_plot(record, metrics.with_name(f"{stage.cell}.png"))
    write_json(metrics.with_name(f"{stage.cell}.json"), measured)


if __name__ == "__main__":
    run_stage(prune, per_model=True)
