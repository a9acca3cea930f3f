"""Graphs keep the zeros as constants, and the rolling cache computes what PyTorch computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from efficientllava.errors import UserError
from efficientllava.export.decoding import Decoding, prefill_inputs
from efficientllava.export.graphs import matrices, writing
from efficientllava.export.graphs.writing import export_graphs
from efficientllava.export.graphs.zeros import graph_zeros, sparsity
from efficientllava.export.measure import timing_inputs
from efficientllava.export.runtimes import open_graph
from efficientllava.models.checkpoint import load_model
from efficientllava.models.families import adapter_for
from tests.export.conftest import each_runtime, tiny_model


@pytest.fixture(scope="module")
def graphs(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    export_graphs(load_model(checkpoints["pruned"]), folder, prompt_tokens=24, context=32)
    return folder


@pytest.mark.parametrize("name", ["vision", "prefill", "decode"])
def test_graph_is_what_deepsparse_reads(graphs: Path, name: str) -> None:
    graph = onnx.load_model(str(graphs / f"{name}.onnx"))
    assert graph.ir_version == 8
    assert 13 <= graph.opset_import[0].version <= 18
    for value in [*graph.graph.input, *graph.graph.output]:
        assert all(d.dim_value > 0 for d in value.type.tensor_type.shape.dim), value.name


@pytest.mark.parametrize("name", ["prefill", "decode"])
def test_pruned_weights_are_constants_of_their_matmul(
    graphs: Path, checkpoints: dict[str, Path], name: str
) -> None:
    model = load_model(checkpoints["pruned"])
    graph = onnx.load_model(str(graphs / f"{name}.onnx")).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {
        node.name: constants[node.input[1]]
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in constants
    }
    for matrix in adapter_for(model).matrices:
        node = "/" + matrix.name.removeprefix("model.").replace(".", "/") + "/MatMul"
        node = node.replace("layers/", "layers.")
        assert np.array_equal(found[node].T, matrix.weight.numpy()), matrix.name
    assert 0.7 < sparsity(model, graphs / f"{name}.onnx") < 0.8


def test_zeros_that_differ_are_refused(graphs: Path, checkpoints: dict[str, Path]) -> None:
    model = load_model(checkpoints["pruned"])
    weight = adapter_for(model).matrices[3].weight
    weight[weight == 0] = 1.0
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.o_proj has 0 zeros"):
        sparsity(model, graphs / "prefill.onnx")


def test_equal_matrices_stay_constants(tmp_path: Path) -> None:
    """The exporter shares equal weights; all-zero matrices (ratio 1) are equal."""
    model = tiny_model()
    for matrix in adapter_for(model).matrices:
        matrix.weight.zero_()
    export_graphs(model, tmp_path, prompt_tokens=8, context=16)
    assert sparsity(model, tmp_path / "prefill.onnx") == 1.0
    assert len(graph_zeros(tmp_path / "decode.onnx")) == len(adapter_for(model).matrices) + 1


def test_equal_matrices_that_are_not_zero_keep_their_numbers(tmp_path: Path) -> None:
    model = tiny_model()
    mlp = model.model.language_model.layers[0].mlp
    mlp.up_proj.weight.data.copy_(mlp.gate_proj.weight.data)
    export_graphs(model, tmp_path, prompt_tokens=8, context=16)
    assert len(graph_zeros(tmp_path / "prefill.onnx")) == len(adapter_for(model).matrices) + 1
    ids = torch.arange(10, 18)
    with torch.no_grad():
        expected = model(input_ids=ids[None]).logits[0, -1].numpy()
    prefill = open_graph("onnxruntime", tmp_path / "prefill.onnx", 1)
    table = model.get_input_embeddings().weight.detach().numpy()
    logits = prefill.run(prefill_inputs(table[ids.numpy()], 8))["logits"][0]
    assert np.abs(logits - expected).max() < 1e-4


@each_runtime
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_decoding_equals_one_pass_without_cache(
    tmp_path: Path, runtime: str, kv_heads: int
) -> None:
    """Any prompt length, up to a full prefill graph and a full cache; tied head, grouped heads."""
    model = tiny_model(kv_heads, tied=True)
    export_graphs(model, tmp_path, prompt_tokens=16, context=20)
    prefill = open_graph(runtime, tmp_path / "prefill.onnx", 1)
    decode = open_graph(runtime, tmp_path / "decode.onnx", 1)
    table = model.get_input_embeddings().weight.detach()
    for prompt in (1, 5, 16):
        ids = torch.randint(5, 64, (20,), generator=torch.Generator().manual_seed(prompt))
        with torch.no_grad():
            expected = model(input_ids=ids[None], use_cache=False).logits[0].numpy()
        decoding = Decoding(prefill, decode)
        logits = [decoding.start(table[ids[:prompt]].numpy())]
        logits += [decoding.step(table[token].numpy()) for token in ids[prompt:]]
        assert np.abs(np.array(logits) - expected[prompt - 1 :]).max() < 1e-4
        assert np.abs(expected).max() > 1.0
        with pytest.raises(UserError, match="has reached the 20 tokens"):
            decoding.step(table[7].numpy())


def test_context_beyond_the_models_positions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="context 512 exceeds the 256 positions"):
        export_graphs(tiny_model(), tmp_path, prompt_tokens=8, context=512)
    assert not list(tmp_path.iterdir())


def test_weights_beyond_a_graph_lie_in_a_data_file_that_both_graphs_share(
    graphs: Path, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers come out as of weights inside the graphs; the limit is made small."""
    monkeypatch.setattr(writing, "LARGEST_GRAPH", 1000)
    monkeypatch.setattr(matrices, "ROWS_AT_ONCE", 7)
    model = load_model(checkpoints["pruned"])
    (tmp_path / "decoder.data").write_bytes(b"of an older export")
    export_graphs(model, tmp_path, prompt_tokens=24, context=32)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == set(writing.FILES)
    linear = [*adapter_for(model).matrices, model.get_output_embeddings()]
    weights = sum(4 * each.weight.numel() for each in linear)
    size = (tmp_path / "decoder.data").stat().st_size
    assert weights <= size < weights + 4096 * len(linear)
    for name in ("prefill", "decode"):
        assert (tmp_path / f"{name}.onnx").stat().st_size < weights
        assert sparsity(model, tmp_path / f"{name}.onnx") == sparsity(
            model, graphs / f"{name}.onnx"
        )
    for name in ("vision", "prefill", "decode"):
        one, other = (
            open_graph("onnxruntime", at / f"{name}.onnx", 1) for at in (graphs, tmp_path)
        )
        inputs = timing_inputs(name, one)
        outside = other.run(inputs)
        for key, inside in one.run(inputs).items():
            assert np.array_equal(inside, outside[key]), (name, key)
