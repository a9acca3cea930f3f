"""Models whose layers take the kernels directly give what they gave before."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from efficientllava.errors import UserError
from efficientllava.sparse import inference
from efficientllava.sparse.inference import DenseLinear, SparseLinearInGroup, for_inference
from efficientllava.sparse.linear import SparseLinear


def small_llama(tied: bool = False) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).bfloat16().eval().requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            module.weight.masked_fill_(torch.rand(module.weight.shape) < 0.5, 0.0)
            model.set_submodule(name, SparseLinear.from_dense(module))
    return model


IDS = torch.arange(12)[None]


def generated(model: Any) -> torch.Tensor:
    ids: torch.Tensor = model.generate(IDS, max_new_tokens=8, do_sample=False, pad_token_id=0)
    return ids


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("huge_pages", [False, True])
def test_same_logits_and_state(tied: bool, huge_pages: bool) -> None:
    model = small_llama(tied)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        before, tokens = model(IDS).logits, generated(model)
        assert for_inference(model, huge_pages) is model
        after = model(IDS).logits
    head = model.lm_head
    assert (
        type(head) is DenseLinear and type(model.model.layers[0].mlp.up_proj) is SparseLinearInGroup
    )
    assert torch.equal(before, after)  # more than 8 tokens: torch's head in both
    assert torch.equal(generated(model), tokens)
    if tied:
        assert head.weight is model.model.embed_tokens.weight
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_neighbours_are_computed_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = for_inference(small_llama()), []
    real = inference.sparse_products
    monkeypatch.setattr(
        inference, "sparse_products", lambda *given: calls.append(len(given[1])) or real(*given)
    )
    with torch.inference_mode():
        model(IDS[:, :1])
    assert calls == [3, 1, 2, 1] * 2
    assert not model.model.layers[0].mlp.up_proj.shared.waiting


def test_products_are_not_given_for_another_input() -> None:
    attention = for_inference(small_llama()).model.layers[0].self_attn
    query, key = attention.q_proj, attention.k_proj
    x, other = torch.randn(2, 1, 64).bfloat16()
    with torch.no_grad():
        query(x)
        assert torch.equal(key(other), SparseLinear.forward(key, other))
        query(x)
        x.add_(1)
        assert torch.equal(key(x), SparseLinear.forward(key, x))
        query(x)
        assert torch.equal(query(x), SparseLinear.forward(query, x))


def test_copies_threads_and_casts() -> None:
    model = for_inference(small_llama())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(IDS[:, :3]).logits
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda _: twin(IDS[:, :3]).logits, range(12)))
        assert all(torch.equal(each, expected) for each in found)
        twin.float()
        single = twin(IDS[:, :3]).logits
        assert single.dtype == torch.float32
        torch.testing.assert_close(single, expected.float(), atol=0.2, rtol=0.1)
        layer = model.model.layers[0].mlp
        layer.up_proj.cast(torch.float32)  # neighbours no longer fit together
        model(IDS[:, :3])
        assert layer.gate_proj(torch.ones(1, 64).bfloat16()).dtype == torch.bfloat16
    with pytest.raises(UserError, match="wants floating numbers"):
        layer.down_proj(torch.ones(1, 3))


def test_gradients() -> None:
    """Dense layers keep theirs; sparse ones say that they have none."""
    dense = for_inference(nn.Sequential(nn.Linear(32, 4)))
    dense(torch.ones(2, 32)).sum().backward()
    assert dense[0].weight.grad is not None
    model = small_llama()
    with pytest.raises(UserError):
        for_inference(model).float().model.layers[0].mlp.down_proj(
            torch.ones(1, 96, requires_grad=True)
        ).sum().backward()


@pytest.mark.slow
def test_compiled_by_torch() -> None:
    model = for_inference(small_llama())
    with torch.no_grad():
        expected = model(IDS[:, :3]).logits
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(IDS[:, :3]).logits, expected)
