"""Stage `prune`: the final pruned model, verified, as an ordinary transformers checkpoint.

In:  params obs, finalize, sensitivity, search.fitness, search.fitness_data; artifacts/model,
     artifacts/proxy, the policy and the projector of artifacts/search/METHOD-RATIO; for methods
     that search also the database in .work
Out: artifacts/pruned/METHOD-RATIO/ (checkpoint with pruning.json),
     artifacts/pruned_metrics/METHOD-RATIO.json (metrics) and .png
"""

from __future__ import annotations

from efficientllava.registry import METHODS
from tasks.runtime.stage import ARTIFACTS, Stage, run_stage


def prune(stage: Stage) -> None:
    """Prune with the policy, save, load again and compare."""
    from efficientllava.allocation.context import Allocation, Risk
    from efficientllava.files import load_tensors, read_json, write_json
    from efficientllava.pruning.finalize import finalize
    from efficientllava.report.plots import sparsity_plot

    search, folder = stage.folder("search"), stage.folder("pruned")
    policy_record = read_json(search / "policy.json")
    allocation = Allocation(
        policy_record["policy"],
        policy_record["allocation"],
        load_tensors(search / "projector.safetensors"),
        risk=None if policy_record["risk"] is None else Risk(**policy_record["risk"]),
        gain=policy_record.get("gain"),
    )
    record = finalize(METHODS[stage.method], stage.context(), allocation, folder)
    measured = {key: value for key, value in record.items() if isinstance(value, (int, float))}
    measured["bytes_on_disk"] = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    measured.pop("ratio")
    metrics = ARTIFACTS / "pruned_metrics" / stage.cell
    sparsity_plot(record, metrics.with_name(f"{stage.cell}.png"))
    write_json(metrics.with_name(f"{stage.cell}.json"), measured)


if __name__ == "__main__":
    run_stage(prune, per_model=True)
