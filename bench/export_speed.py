"""Dense against pruned latency of one decoder size: random weights, random masks, real graphs.

    python -m bench export_speed --width 1024 --mlp 2752 --blocks 12 --ratios 0.5 0.7

Every runtime runs the dense graph and all pruned ones in turns; the table gives medians and
dense / pruned with its interval (docs/export.md). Nothing is trained and nothing is
kept. Zeros at random are an assumption: a real model's zeros may lie otherwise.

With --memory it writes the graphs of one model instead, says the largest resident set meanwhile
against the bytes of the model, and holds one token in ONNX Runtime against PyTorch.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedModel

from bench import options_of, say_conditions
from bench.random_models import DecoderSize, random_llava, size_of, size_options
from efficientllava.export.graphs.writing import (
    LanguageGraph,
    cache_names,
    cache_shape,
    export_graphs,
)
from efficientllava.export.measure import timed_calls
from efficientllava.export.runtimes import open_graph, takes_graphs, unavailable, version
from efficientllava.export.speed import (
    clock_of,
    interleaved,
    load_average,
    machine,
    milliseconds,
    ratio_interval,
    seconds_of,
    warn_of_load,
)
from efficientllava.models.families import adapter_for
from efficientllava.registry import RUNTIMES
from efficientllava.report.speedup import Speedup


def main() -> None:
    """Export at every ratio, time in turns, print."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], parents=[size_options(DecoderSize(512, 1376, 4, 512))]
    )
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.7])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--memory", action="store_true", help="memory of writing the graphs alone")
    arguments = options_of(parser)
    say_conditions(arguments)
    if arguments.memory:
        _measure_memory(arguments)
        return

    with tempfile.TemporaryDirectory() as temporary:
        folders = {}
        for ratio in [0.0, *arguments.ratios]:
            model = random_llava(size_of(arguments), arguments.context)
            for matrix in adapter_for(model).matrices:
                matrix.weight.masked_fill_(torch.rand(matrix.weight.shape) < ratio, 0.0)
            folders[ratio] = Path(temporary) / f"{ratio:g}"
            folders[ratio].mkdir()
            export_graphs(model, folders[ratio], arguments.prompt_tokens, arguments.context)
            del model
        print("| runtime | graph | ratio | ms | fastest ms | dense / this | share |")
        print("|---|---|---|---|---|---|---|")
        load = 0.0
        for runtime in filter(takes_graphs, RUNTIMES):
            if (reason := unavailable(runtime)) is not None:
                print(f"| {runtime} | cannot be used here: {reason} |")
                continue
            for name in ("prefill", "decode"):
                graphs = {
                    str(ratio): open_graph(runtime, folder / f"{name}.onnx", arguments.threads)
                    for ratio, folder in folders.items()
                }
                clock = clock_of(arguments.threads)
                runs = interleaved(timed_calls(name, graphs), arguments.repetitions)
                seconds = {ratio: seconds_of(times, clock) for ratio, times in runs.items()}
                dense = milliseconds(seconds["0.0"])["ms"]
                for ratio, times in seconds.items():
                    row, share = milliseconds(times), graphs[ratio].engine_share
                    interval = ratio_interval(seconds["0.0"], times) or {}
                    speedup = Speedup(dense / row["ms"], **interval)
                    print(
                        f"| {runtime} {version(runtime)} | {name} | {ratio} | {row['ms']} "
                        f"| {row['fastest_ms']} | {speedup if ratio != '0.0' else '–'} "
                        f"| {'' if share is None else share} |",
                        flush=True,
                    )
                load = max(load, load_average())
        print(f"load average at most: {load}")
        warn_of_load(load, machine()["cores"])


def _measure_memory(wanted: argparse.Namespace) -> None:
    model = random_llava(size_of(wanted), wanted.context)
    size = sum(each.nbytes for each in model.parameters())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
        export_graphs(model, folder, wanted.prompt_tokens, wanted.context)
        peak = _status("VmHWM")
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        print(f"model {size / 1e9:.2f} GB, resident {before / 1e9:.2f} GB, files {files}")
        print(f"peak {peak / 1e9:.2f} GB: {peak / size:.3f} of the model", flush=True)
        inputs = _decode_inputs(model, wanted.context)
        with torch.no_grad():
            expected = LanguageGraph(model)(*inputs.values())[0]
        del model  # the runtime needs as much memory again
        graph = open_graph("onnxruntime", folder / "decode.onnx", wanted.threads)
        logits = graph.run({name: tensor.numpy() for name, tensor in inputs.items()})["logits"]
        print(f"largest difference from PyTorch {abs(logits - expected.numpy()).max():.2g}")


def _decode_inputs(model: PreTrainedModel, context: int) -> dict[str, torch.Tensor]:
    """Random inputs of the decode graph, by their names."""
    names = cache_names("past_key_values", model.config.get_text_config().num_hidden_layers)
    return {
        "inputs_embeds": torch.randn(1, 1, model.config.get_text_config().hidden_size),
        "attention_mask": torch.zeros(1, 1, 1, context),
        "position_ids": torch.tensor([[context - 1]]),
        **{name: torch.randn(cache_shape(model, context)) for name in names},
    }


def _status(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    main()
