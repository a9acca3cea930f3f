"""transformers' generate with a dense and a packed model."""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import torch

from bench.sparse.turns import in_turns, on, table
from efficientllava.sparse.inference import for_inference
from efficientllava.sparse.linear import SparseLinear

MODELS: dict[str, dict[str, Any]] = {
    "135m": {
        **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
        **{"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
        "tie_word_embeddings": True,
    },
    "1.1b": {
        **{"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22},
        **{"num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000},
    },
}
"""Shapes of SmolLM2-135M and TinyLlama-1.1B; the weights are random."""


def random_models(name: str) -> tuple[Any, Any]:
    """A bfloat16 Llama of a shape with half of its weights zero: dense, and packed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(**MODELS[name], max_position_embeddings=2048)
    dense, sparse = (LlamaForCausalLM(config).eval() for _ in range(2))
    torch.set_default_dtype(torch.float32)
    for path, module in dense.named_modules():
        if isinstance(module, torch.nn.Linear) and path != "lm_head":
            module.weight.masked_fill_(torch.rand(module.weight.shape) < 0.5, 0.0)
    sparse.load_state_dict(dense.state_dict())
    for path, module in list(sparse.named_modules()):
        if isinstance(module, torch.nn.Linear) and path != "lm_head":
            sparse.set_submodule(path, SparseLinear.from_dense(module))
    return dense, for_inference(sparse)


def measure_generate(wanted: argparse.Namespace, name: str) -> None:
    """transformers' generate, batch 1: time to the first token of 128, and of each after it."""
    dense, sparse = random_models(name)
    ids = torch.randint(0, 1000, (1, 128))
    asked = {"do_sample": False, "pad_token_id": 0}

    def tokens(model: Any, count: int) -> torch.Tensor:
        found: torch.Tensor = model.generate(
            ids, min_new_tokens=count, max_new_tokens=count, **asked
        )
        return found

    same = tokens(dense, wanted.tokens) == tokens(sparse, wanted.tokens)
    logits = [model(ids).logits.float() for model in (dense, sparse)]
    off = float((logits[0] - logits[1]).norm() / logits[0].norm())
    print(f"\n{name}: {float(same.float().mean()):.3f} of the tokens are the same, ", end="")
    print(f"logits differ by {off:.4f} of their norm (sums in another order)")
    work = {"torch": partial(tokens, dense), "sparse": partial(tokens, sparse)}
    work["sparse, avx2"] = lambda count: on("avx2", partial(tokens, sparse, count))
    against = {each: [["torch"]] for each in work if each != "torch"}
    first = in_turns({each: partial(run, 1) for each, run in work.items()}, wanted.runs, cold=False)
    table(f"{name}, time to the first token, {wanted.threads} threads", first, against)
    whole = in_turns(
        {each: partial(run, wanted.tokens + 1) for each, run in work.items()},
        wanted.runs,
        cold=False,
    )
    each_token = tuple(
        {
            each: [(long - statistics.median(start[each])) / wanted.tokens for long in times]
            for each, times in long.items()
        }
        for start, long in zip(first, whole, strict=True)
    )
    table(f"{name}, a token after it, {wanted.threads} threads", each_token, against)
