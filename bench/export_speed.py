"""Dense against pruned latency of one decoder size: random weights, random masks, real graphs.

    python -m bench.export_speed --width 1024 --mlp 2752 --blocks 12 --ratios 0.5 0.7

Every runtime runs the dense graph and all pruned ones in turns; the table gives medians and
dense / pruned with its quartiles over neighbouring runs. Nothing is trained and nothing is
kept. Zeros at random are an assumption: a real model's zeros may lie otherwise.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from efficientllava.export.graphs import export_graphs
from efficientllava.export.runtimes import RUNTIMES, open_graph, unavailable, version
from efficientllava.export.speed import (
    interleaved,
    load_average,
    machine,
    milliseconds,
    ratio_quartiles,
    timing_inputs,
)
from efficientllava.models.adapter import adapter_for


def random_model(width: int, mlp: int, blocks: int, context: int) -> LlavaForConditionalGeneration:
    """A LLaVA whose decoder has the given size, with the smallest tower there is."""
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=blocks,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=context,
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, vision_feature_layer=-1)
    ).eval()


def main() -> None:
    """Export at every ratio, time in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=512, help="a multiple of 64")
    parser.add_argument("--mlp", type=int, default=1376)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.7])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=20)
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)

    with tempfile.TemporaryDirectory() as temporary:
        folders = {}
        for ratio in [0.0, *wanted.ratios]:
            model = random_model(wanted.width, wanted.mlp, wanted.blocks, wanted.context)
            for matrix in adapter_for(model).matrices:
                matrix.weight.mul_(torch.rand(matrix.weight.shape) >= ratio)
            folders[ratio] = Path(temporary) / f"{ratio:g}"
            folders[ratio].mkdir()
            export_graphs(model, folders[ratio], wanted.prompt_tokens, wanted.context)
            del model
        print(json.dumps({**vars(wanted), "machine": machine()}, indent=2))
        print(
            "| runtime | graph | ratio | ms | fastest ms | dense / this | its quartiles | share |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for runtime in RUNTIMES:
            if (reason := unavailable(runtime)) is not None:
                print(f"| {runtime} | cannot be used here: {reason} |")
                continue
            for name in ("prefill", "decode"):
                graphs = {
                    str(ratio): open_graph(runtime, folder / f"{name}.onnx", wanted.threads)
                    for ratio, folder in folders.items()
                }
                inputs = timing_inputs(name, graphs["0.0"])
                seconds = interleaved(graphs, inputs, wanted.repetitions)
                dense = milliseconds(seconds["0.0"])["ms"]
                for ratio, times in seconds.items():
                    row, share = milliseconds(times), graphs[ratio].engine_share
                    low, high = ratio_quartiles(seconds["0.0"], times)
                    print(
                        f"| {runtime} {version(runtime)} | {name} | {ratio} | {row['ms']} "
                        f"| {row['fastest_ms']} | {dense / row['ms']:.2f} "
                        f"| {low:.2f}-{high:.2f} | {'' if share is None else share} |",
                        flush=True,
                    )
        print(f"load average after: {load_average()}")


if __name__ == "__main__":
    main()
