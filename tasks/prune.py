"""Stage `prune`: the final pruned model, verified, as an ordinary transformers checkpoint.

In:  params pruning, prune, search; artifacts/model, proxy, database and the policy and projector of
     artifacts/search/METHOD-RATIO
Out: artifacts/pruned/METHOD-RATIO/ (checkpoint with pruning.json),
     artifacts/pruned_metrics/METHOD-RATIO.json (metrics) and .png
"""

from __future__ import annotations

from efficientllava.pruning.methods import method_named
from tasks.stage import ARTIFACTS, Stage, run_stage


def prune(stage: Stage) -> None:
    """Prune with the policy, save, load again and compare."""
    from efficientllava import __version__
    from efficientllava.data.proxy import load_proxy
    from efficientllava.files import folder_digest, load_tensors, read_json, write_json
    from efficientllava.models.adapter import adapter_for
    from efficientllava.models.checkpoint import load_model, load_processor, save_checkpoint
    from efficientllava.pruning.database import open_database
    from efficientllava.report.plots import sparsity_plot
    from efficientllava.search.final import prune_finally, require_same_logits

    method = method_named(stage.method)
    search = stage.folder("search")
    policy = read_json(search / "policy.json")["policy"]
    model, processor = load_model(ARTIFACTS / "model"), load_processor(ARTIFACTS / "model")
    proxy = load_proxy(ARTIFACTS / "proxy")
    found = method.allocation == "search"
    record = prune_finally(
        adapter_for(model),
        proxy,
        open_database(ARTIFACTS / "database", sorted(set(policy.values()))) if found else None,
        method.update,
        policy,
        load_tensors(search / "projector.safetensors"),
        stage.parameters.pruning,
        method.search_parameters(stage.parameters.search),
        stage.progress,
        stage.parameters.prune,
    )
    record |= {
        "method": stage.method,
        "ratio": stage.ratio,
        "digests": {"model": folder_digest(ARTIFACTS / "model"), "proxy": proxy.digest},
        "version": __version__,
    }
    folder = stage.folder("pruned")
    save_checkpoint(model, processor, folder, {"pruning.json": record})
    require_same_logits(model, load_model(folder), proxy)

    measured = {key: value for key, value in record.items() if isinstance(value, (int, float))}
    measured["bytes_on_disk"] = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    measured["parameters"] = model.num_parameters()
    measured.pop("ratio")
    metrics = ARTIFACTS / "pruned_metrics" / stage.cell
    sparsity_plot(record, metrics.with_name(f"{stage.cell}.png"))
    write_json(metrics.with_name(f"{stage.cell}.json"), measured)


if __name__ == "__main__":
    run_stage(prune, per_model=True)
