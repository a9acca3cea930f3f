"""`generate` of a packed model against the same model with dense weights, on one card.

    python -m bench card.generate                        # 1.1B, and two blocks of 7B
    python -m bench card.generate --device cpu --width 64 --mlp 128 --blocks 1 --vocabulary 128 \\
        --new-tokens 4 --prompt 8 --repetitions 1

Greedy, one sequence, bfloat16. `eager` is plain `generate`, in which the host launches every
kernel; `static` has a cache of fixed size, with which transformers compiles the step into a graph.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from dataclasses import replace
from statistics import median
from typing import Any

from bench import options_of, say_conditions
from bench.card.conditions import conditions
from bench.card.timing import ratio
from bench.random_models import SHAPES, DecoderSize, random_decoder, size_of, size_options

MODELS = {"1.1B": SHAPES["1.1B"], "two 7B blocks": replace(SHAPES["7B"], blocks=2)}
HEADER = (
    "| model | mode | dense ms a token | sparse ms a token | dense / sparse (quartiles) "
    "| first token, sparse / dense | same tokens | bytes / dense |\n"
    "|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Measure both models, or the one whose size is given."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], parents=[size_options(SHAPES["1.1B"])]
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=8)
    arguments = options_of(parser)
    say_conditions(arguments, **conditions(arguments.device))
    print(HEADER, flush=True)
    own = any(option.startswith("--width") for option in sys.argv)
    for name, size in ({"given": size_of(arguments)} if own else MODELS).items():
        measure(arguments, name, size)


def measure(arguments: argparse.Namespace, name: str, size: DecoderSize) -> None:
    """One model: a line for each mode."""
    import torch

    torch.set_default_dtype(torch.bfloat16)
    with torch.device(arguments.device):
        dense = random_decoder(size, arguments.prompt + arguments.new_tokens + 1)
        prompt = torch.randint(5, size.vocabulary, (1, arguments.prompt))
    torch.set_default_dtype(torch.float32)
    sparse = packed(dense, arguments.sparsity)
    stored = size_in_bytes(sparse) / size_in_bytes(dense)
    for mode in ("eager",) if arguments.device == "cpu" else ("eager", "static"):
        found: dict[str, list[float]] = {"dense": [], "sparse": []}
        first: dict[str, list[float]] = {"dense": [], "sparse": []}
        tokens: dict[str, Any] = {}
        for repetition in range(1 + arguments.repetitions):
            for kind, model in (("dense", dense), ("sparse", sparse)):
                _, one = timed(model, prompt, 1, mode)
                tokens[kind], all_of_them = timed(model, prompt, arguments.new_tokens, mode)
                if repetition:  # the first compiles
                    first[kind].append(one)
                    found[kind].append((all_of_them - one) / max(arguments.new_tokens - 1, 1))
        middle, low, high = ratio(found["dense"], found["sparse"])
        start = ratio(first["sparse"], first["dense"])[0]
        same = (tokens["dense"] == tokens["sparse"]).sum()
        print(
            f"| {name} | {mode} | {median(found['dense']) * 1e3:.2f} "
            f"| {median(found['sparse']) * 1e3:.2f} | {middle:.2f} ({low:.2f}-{high:.2f}) "
            f"| {start:.2f} | {int(same)} of {tokens['dense'].numel()} | {stored:.3f} |",
            flush=True,
        )


def packed(dense: Any, sparsity: float) -> Any:
    """Prune the decoder's matrices by magnitude, and give a copy of the model with them packed."""
    import torch

    from efficientllava.kernels.masks import magnitude
    from efficientllava.sparse.linear import SparseLinear

    with torch.no_grad():
        for module in dense.model.layers.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(magnitude(module.weight, sparsity))
    sparse = copy.deepcopy(dense)
    for module in list(sparse.model.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(module, name, SparseLinear.from_dense(child))
    return sparse


def size_in_bytes(model: Any) -> int:
    """Bytes of all parameters and buffers."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


def timed(model: Any, prompt: Any, count: int, mode: str) -> tuple[Any, float]:
    """(new tokens [count], seconds) of one call of `generate`."""
    import torch

    options = {"cache_implementation": "static"} if mode == "static" else {}
    if prompt.is_cuda:
        torch.cuda.synchronize(prompt.device)
    started = time.perf_counter()
    with torch.inference_mode():
        ids = model.generate(
            prompt,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            **options,
        )
    if prompt.is_cuda:
        torch.cuda.synchronize(prompt.device)
    return ids[0, prompt.shape[1] :].cpu(), time.perf_counter() - started
