"""Stage `database`: prune every matrix of the dense model at every level in one pass.

In:  params pruning, search.offsets, ratios; artifacts/model, artifacts/proxy
Out: artifacts/database/ (block-NNN.safetensors, manifest.json)
Finished blocks are kept in .work/database: a killed run goes on from there.
"""

from __future__ import annotations

from tasks.runtime.stage import ARTIFACTS, WORK, Stage, run_stage


def database(stage: Stage) -> None:
    """Build the database at the levels of all target ratios."""
    from efficientllava.data.proxy import load_proxy
    from efficientllava.database.build import build_database
    from efficientllava.files import folder_digest
    from tasks.runtime.devices import block_by_block
    from tasks.runtime.identity import unfinished

    parameters = stage.parameters
    levels = {level for ratio in parameters.ratios for level in parameters.levels(ratio)}
    proxy = load_proxy(ARTIFACTS / "proxy")
    model = ARTIFACTS / "model"
    with block_by_block(stage, model, WORK / "database", proxy, len(levels)) as (adapter, _):
        build_database(
            adapter,
            proxy,
            sorted(levels),
            parameters.pruning,
            ARTIFACTS / "database",
            unfinished("database", stage),
            {"model": folder_digest(model), "proxy": proxy.digest},
            stage.progress,
        )


if __name__ == "__main__":
    run_stage(database)
