"""Products with packed matrices on a real card: against float64, in graphs, compiled, and large."""

from __future__ import annotations

import pytest
import torch

from efficientllava.errors import UserError
from efficientllava.sparse import operators
from efficientllava.sparse.format import pack, quantize

assert operators is not None  # its import registers the operators
Arguments = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]


def packed_on(
    device: torch.device, rows: int, columns: int, dtype: torch.dtype, sparsity: float = 0.5
) -> tuple[torch.Tensor, Arguments]:
    """The dense matrix in float64 and its packed tensors, both on the device."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator) / columns**0.5
    weight[torch.rand(rows, columns, generator=generator) < sparsity] = 0
    if dtype == torch.int8:
        codes, scales, _ = quantize(weight)
        packed, dense = pack(codes, scales), codes.double() * scales[:, None].double()
    else:
        packed, dense = pack(weight.to(dtype)), weight.to(dtype).double()
    found = (packed.masks, packed.values, packed.offsets)
    given = None if packed.scales is None else packed.scales.to(device)
    masks, values, offsets = (tensor.to(device) for tensor in found)
    return dense.to(device), (masks, values, offsets, given)


def multiply(
    x: torch.Tensor, tensors: Arguments, bias: torch.Tensor | None, rows: int
) -> torch.Tensor:
    return torch.ops.efficientllava.sparse_linear(x, *tensors, bias, rows, x.shape[-1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int8])
@pytest.mark.parametrize(("rows", "columns"), [(4096, 1376), (1376, 4096), (999, 1001)])
def test_same_as_float64(card: torch.device, rows: int, columns: int, dtype: torch.dtype) -> None:
    dense, tensors = packed_on(card, rows, columns, dtype)
    inputs = torch.bfloat16 if dtype == torch.int8 else dtype
    bias = torch.linspace(-1, 1, rows, device=card).to(inputs)
    for tokens in (1, 4, 7, 16, 17, 64, 300):
        x = torch.randn(tokens, columns, device=card).to(inputs)
        got = multiply(x, tensors, bias, rows)
        expected = x.double() @ dense.T + bias.double()
        largest = x.double().abs() @ dense.abs().T + 1
        allowed = torch.finfo(inputs).eps * expected.abs() + 1e-5 * largest
        assert ((got.double() - expected).abs() <= allowed).all(), tokens
        assert torch.equal(got, multiply(x, tensors, bias, rows)), tokens


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.7, 1.0])
def test_any_sparsity(card: torch.device, sparsity: float) -> None:
    dense, tensors = packed_on(card, 512, 768, torch.bfloat16, sparsity)
    x = torch.randn(2, 768, device=card).bfloat16()
    expected = x.double() @ dense.T
    torch.testing.assert_close(
        multiply(x, tensors, None, 512).double(), expected, rtol=2**-7, atol=1e-4
    )


def test_a_graph_replays_it_with_other_inputs(cuda: torch.device) -> None:
    """First run before the capture, then the first run of another matrix within one."""
    for warm in (True, False):
        dense, tensors = packed_on(cuda, 512, 768, torch.bfloat16)
        x = torch.randn(4, 768, device=cuda).bfloat16()
        other, others = packed_on(cuda, 16, 768, torch.bfloat16)
        multiply(x, others, None, 16)  # compiles, so that a capture launches alone
        if warm:
            multiply(x, tensors, None, 512)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = multiply(x, tensors, None, 512)
        for _ in range(2):
            x.copy_(torch.randn(4, 768, device=cuda))
            graph.replay()
            torch.testing.assert_close(result.double(), x.double() @ dense.T, rtol=2**-7, atol=1e-4)
            assert torch.equal(result, multiply(x, tensors, None, 512))


def test_it_never_waits_for_the_device(cuda: torch.device) -> None:
    _, tensors = packed_on(cuda, 512, 768, torch.float16)
    x = torch.randn(4, 768, device=cuda).half()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for tokens in (1, 4):
            multiply(x[:tokens], tensors, None, 512)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_torch_compile_calls_it(cuda: torch.device, mode: str) -> None:
    """Compiled first, so that the matrix is new to a graph's warm-up; memory is used meanwhile."""
    _, tensors = packed_on(cuda, 512, 512, torch.bfloat16)

    def twice(x: torch.Tensor) -> torch.Tensor:
        return multiply(torch.relu(multiply(x, tensors, None, 512)), tensors, None, 512)

    compiled = torch.compile(twice, fullgraph=True, mode=mode)
    for _ in range(5):
        x = torch.randn(2, 512, device=cuda).bfloat16()
        found = compiled(x).clone()
        assert all(torch.ones(1000 * n, device=cuda).all() for n in range(1, 9))
        assert torch.equal(found, twice(x))


def test_tensors_of_two_devices_are_an_error(cuda: torch.device) -> None:
    _, tensors = packed_on(torch.device("cpu"), 32, 64, torch.bfloat16)
    with pytest.raises(UserError, match="on cpu, the inputs on cuda:0"):
        multiply(torch.ones(1, 64, device=cuda).bfloat16(), tensors, None, 32)


def test_more_values_than_32_bits_count(cuda: torch.device) -> None:
    """2^31 + 2^14 weights, all of them 1: groups whose values lie past 4 GiB."""
    groups, columns = 2**17 + 1, 1024
    if torch.cuda.mem_get_info(cuda)[0] < 10 * 2**30:
        pytest.skip("needs 10 GiB of the card")
    masks = torch.full((groups, columns // 2), -1, dtype=torch.int32, device=cuda)
    values = torch.ones(groups * 16 * columns + 32, dtype=torch.float16, device=cuda)
    offsets = torch.arange(groups + 1, device=cuda) * (16 * columns)
    for tokens in (1, 20):
        x = torch.ones(tokens, columns, device=cuda, dtype=torch.float16)
        got = multiply(x, (masks, values, offsets, None), None, 16 * groups)
        assert got.shape == (tokens, 16 * groups) and (got == columns).all()
