"""Reading GGUF: a small file with 4-bit matrices, against gguf's own dequantisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from efficientllava.demo.pretrained import language_model as module
from efficientllava.demo.pretrained.language_model import read_language_model, require_gguf
from efficientllava.errors import UserError

WIDTH, MLP, HEADS, GROUPS = 64, 96, 4, 2


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    """Two blocks of a llama as SmolLM2's file has them."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    file = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    letters = [chr(code) for code in (*range(33, 127), 0x120, 0x10A)]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "12"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(["1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    draw = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        values = draw.normal(size=shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q4_1 if len(shape) == 2 else None
        writer.add_tensor(
            name, values if kind is None else gguf.quantize(values, kind), raw_dtype=kind
        )

    add("token_embd.weight", len(tokens), WIDTH)
    add("output_norm.weight", WIDTH)
    for block in range(2):
        add(f"blk.{block}.attn_norm.weight", WIDTH)
        add(f"blk.{block}.ffn_norm.weight", WIDTH)
        add(f"blk.{block}.attn_q.weight", WIDTH, WIDTH)
        add(f"blk.{block}.attn_k.weight", WIDTH // HEADS * GROUPS, WIDTH)
        add(f"blk.{block}.attn_v.weight", WIDTH // HEADS * GROUPS, WIDTH)
        add(f"blk.{block}.attn_output.weight", WIDTH, WIDTH)
        add(f"blk.{block}.ffn_gate.weight", MLP, WIDTH)
        add(f"blk.{block}.ffn_up.weight", MLP, WIDTH)
        add(f"blk.{block}.ffn_down.weight", WIDTH, MLP)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_weights_are_those_of_the_file_and_the_checkpoint_is_plain(gguf_file: Path) -> None:
    import gguf

    model, tokenizer = read_language_model(gguf_file)
    stored = {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(gguf_file).tensors
    }
    found = {name: weight.numpy() for name, weight in model.state_dict().items()}
    down = found["model.layers.1.mlp.down_proj.weight"]
    assert np.array_equal(down, stored["blk.1.ffn_down.weight"].reshape(down.shape))
    # llama.cpp stores the halves of a head's rotary pairs next to each other
    rows = stored["blk.0.attn_q.weight"].reshape(HEADS, WIDTH // HEADS // 2, 2, WIDTH)
    query = rows.swapaxes(1, 2).reshape(WIDTH, WIDTH)
    assert np.array_equal(found["model.layers.0.self_attn.q_proj.weight"], query)
    assert str(model.dtype) == "torch.float32" and not hasattr(model.config, "quantization_config")
    assert model.config.num_key_value_heads == GROUPS
    assert tokenizer.convert_tokens_to_ids("<image>") == model.config.vocab_size
    assert len(tokenizer("12", add_special_tokens=False)["input_ids"]) == 2  # digits stay single


def test_a_file_that_is_cut_off(gguf_file: Path) -> None:
    gguf_file.write_bytes(gguf_file.read_bytes()[:200])
    with pytest.raises(UserError, match="transformers cannot read it") as caught:
        read_language_model(gguf_file)
    assert "small.gguf" in str(caught.value)


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise module.PackageNotFoundError(name)

    monkeypatch.setattr(module, "version", missing)
    with pytest.raises(UserError, match="the package gguf is not installed") as caught:
        require_gguf()
    assert "[gguf]" in str(caught.value)
