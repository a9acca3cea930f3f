"""Kernels of every path that this processor runs, against float64 products with `unpack`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientllava.errors import UserError
from efficientllava.sparse import operators
from efficientllava.sparse.cpu import compile as machine_code
from efficientllava.sparse.cpu import processor, threads
from efficientllava.sparse.format import PackedMatrix, pack, quantize, unpack

PATHS = list(processor.paths())
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.int8]
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10, torch.float32: 2.0**-20}
"""Of y, relative to the sum of the absolute values of what is added up."""
SHAPES = [(1, 1), (16, 2), (33, 100), (250, 333), (64, 576), (5, 0), (0, 5), (129, 31)]


@pytest.fixture(autouse=True)
def _default_path() -> Iterator[None]:
    yield
    processor.force_path(None)


def matrix(
    rows: int, columns: int, dtype: torch.dtype, sparsity: float = 0.5, seed: int = 0
) -> PackedMatrix:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight.masked_fill_(torch.rand(rows, columns, generator=generator) < sparsity, 0.0)
    if dtype == torch.int8:
        codes, scales, _ = quantize(weight)
        return pack(codes, scales)
    return pack(weight.to(dtype))


def product(
    x: torch.Tensor, packed: PackedMatrix, bias: torch.Tensor | None = None
) -> torch.Tensor:
    result: torch.Tensor = torch.ops.efficientllava.sparse_linear(
        x,
        *(packed.masks, packed.values, packed.offsets, packed.scales),
        *(bias, packed.rows, packed.columns),
    )
    return result


def require_product(
    y: torch.Tensor, x: torch.Tensor, packed: PackedMatrix, bias: torch.Tensor | None = None
) -> None:
    weight = unpack(packed).double()
    exact, bound = x.double() @ weight.T, x.double().abs() @ weight.abs().T
    if bias is not None:
        exact, bound = exact + bias.double(), bound + bias.double().abs()
    assert y.dtype == x.dtype and y.shape == exact.shape
    # the processor's products of bfloat16 take numbers below 2^-126 for zero
    assert bool(((y.double() - exact).abs() <= ROUNDING[x.dtype] * bound + 1e-30).all())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_shape_and_number_of_tokens(path: str, dtype: torch.dtype) -> None:
    processor.force_path(path)
    own = torch.bfloat16 if dtype == torch.int8 else dtype
    for rows, columns in SHAPES:
        packed = matrix(rows, columns, dtype)
        for tokens in (0, 1, 2, 5, 8, 9, 100):
            x = torch.randn(tokens, columns).to(own)
            bias = torch.randn(rows).to(own) if tokens % 2 else None
            require_product(product(x, packed, bias), x, packed, bias)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("numbers", list(ROUNDING), ids=str)
def test_each_number_of_tokens_in_every_dtype(
    path: str, dtype: torch.dtype, numbers: torch.dtype
) -> None:
    processor.force_path(path)
    packed = matrix(45, 70, dtype)
    for tokens in (*range(10), 23, 24, 25, 47, 100, 1030):
        x, bias = torch.randn(tokens, 70).to(numbers), torch.randn(45)
        require_product(product(x, packed, bias), x, packed, bias)


@pytest.mark.parametrize("path", PATHS)
@given(
    rows=st.integers(0, 70),
    columns=st.integers(0, 70),
    tokens=st.integers(0, 3),
    sparsity=st.sampled_from([0.0, 0.3, 0.97, 1.0]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_any_matrix(path, rows, columns, tokens, sparsity, dtype, seed) -> None:  # type: ignore[no-untyped-def]
    processor.force_path(path)
    packed = matrix(rows, columns, dtype, sparsity, seed)
    x = torch.randn(tokens, columns)
    require_product(product(x, packed), x, packed)


@pytest.mark.parametrize("path", PATHS)
def test_special_weights(path: str) -> None:
    """-0.0, subnormal float16, the largest numbers, infinities: as the dense product has them."""
    processor.force_path(path)
    weight = torch.zeros(16, 8, dtype=torch.float16)
    weight[0, 0], weight[1, 1], weight[2, 2], weight[3, 3] = 6e-8, 65504.0, -0.0, float("inf")
    packed = pack(weight)
    y = product(torch.ones(1, 8), packed)
    assert torch.equal(y, weight.sum(1, dtype=torch.float32)[None])
    assert product(torch.full((1, 8), float("nan")), packed).isnan().all()


@pytest.mark.parametrize("path", PATHS)
def test_strided_and_leading_dimensions(path: str) -> None:
    processor.force_path(path)
    packed = matrix(40, 66, torch.bfloat16)
    wide = torch.randn(3, 4, 133).bfloat16()
    for x in (wide[..., :66], wide[..., 1:67], wide[..., ::2][..., :66], wide[0, 0, 1:67]):
        y = product(x, packed)
        assert torch.equal(y, product(x.contiguous(), packed))
        assert y.shape == (*x.shape[:-1], 40)


def test_float64_is_computed_in_float64() -> None:
    packed, x = matrix(33, 50, torch.float32), torch.randn(2, 50, dtype=torch.float64)
    assert torch.allclose(product(x, packed), x @ unpack(packed).double().T, rtol=1e-13)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_dense(path: str, dtype: torch.dtype) -> None:
    processor.force_path(path)
    for rows, columns in ((70, 64), (1, 32), (33, 608), (3, 50)):
        weight, bias = torch.randn(rows, columns).to(dtype), torch.randn(rows).to(dtype)
        for tokens in (0, 1, 3, 8, 9):
            x = torch.randn(tokens, columns).to(dtype)
            y = torch.ops.efficientllava.dense_linear(x, weight, bias)
            exact = x.double() @ weight.double().T + bias.double()
            bound = x.double().abs() @ weight.double().abs().T + bias.double().abs()
            assert y.dtype == dtype
            assert bool(((y.double() - exact).abs() <= ROUNDING[dtype] * bound).all())


def test_threads_change_no_bit() -> None:
    packed = matrix(700, 300, torch.bfloat16)
    few, many = torch.randn(1, 300).bfloat16(), torch.randn(50, 300).bfloat16()
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append((product(few, packed), product(many, packed)))
    finally:
        torch.set_num_threads(before)
    for one, other in results[1:]:
        assert torch.equal(one, results[0][0]) and torch.equal(other, results[0][1])


def test_threads_without_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, x = matrix(700, 300, torch.bfloat16), torch.randn(1, 300).bfloat16()
    expected, before = product(x, packed), torch.get_num_threads()
    monkeypatch.setattr(threads, "_parallel", lambda: None)
    try:
        torch.set_num_threads(3)
        assert torch.equal(product(x, packed), expected)
    finally:
        torch.set_num_threads(before)


def test_several_python_threads() -> None:
    packed = [matrix(300, 200, torch.bfloat16, seed=seed) for seed in range(4)]
    x = [torch.randn(1 + seed, 200).bfloat16() for seed in range(4)]
    expected = [product(*each) for each in zip(x, packed, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            results = list(pool.map(product, x, packed))
            assert all(map(torch.equal, results, expected))


def test_compiled_by_torch() -> None:
    """The fake implementation has the real one's shape, dtype and strides."""
    packed, x = matrix(40, 64, torch.bfloat16), torch.randn(2, 3, 64).bfloat16()
    tensors = (packed.masks, packed.values, packed.offsets, None, None, 40, 64)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.efficientllava.sparse_linear, (x, *tensors), test_utils=checks)
    dense = torch.randn(40, 64).bfloat16()
    torch.library.opcheck(
        torch.ops.efficientllava.dense_linear, (x, dense, None), test_utils=checks
    )


@pytest.mark.parametrize("wrong", ["masks", "values", "offsets"])
def test_tensors_that_do_not_fit_are_refused(wrong: str) -> None:
    packed = matrix(40, 64, torch.bfloat16)
    tensors = {name: getattr(packed, name) for name in ("masks", "values", "offsets")}
    tensors[wrong] = tensors[wrong][:1]
    with pytest.raises(UserError, match="not those of a packed matrix"):
        torch.ops.efficientllava.sparse_linear(
            torch.ones(1, 64), *tensors.values(), None, None, 40, 64
        )
    with pytest.raises(UserError, match="wants floating numbers"):
        product(torch.ones(1, 63), packed)


def test_machine_code_is_kept_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process compiles nothing; a damaged file is compiled again."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    compiled = []
    real = machine_code._compile
    monkeypatch.setattr(machine_code, "_compile", lambda *given: compiled.append(0) or real(*given))
    packed, x = matrix(20, 30, torch.float32), torch.randn(1, 30)

    def fresh() -> torch.Tensor:
        monkeypatch.setattr(machine_code, "_addresses", {})
        from efficientllava.sparse.cpu import linear

        linear._sparse_kernel.cache_clear()
        return product(x, packed)

    first = fresh()
    assert len(compiled) == 1 and torch.equal(fresh(), first) and len(compiled) == 1
    (file,) = (tmp_path / "efficientllava").glob("*.o")
    file.write_bytes(file.read_bytes()[:-100])
    assert torch.equal(fresh(), first) and len(compiled) == 2


def test_other_processes_find_the_machine_code(tmp_path: Path) -> None:
    """Whatever the order of a set is in them."""
    code = "from tests.sparse.test_cpu_kernels import matrix, product, torch\n"
    code += "product(torch.randn(1, 30), matrix(20, 30, torch.float32))"
    for seed in ("1", "2", "3"):
        setting = {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONHASHSEED": seed}
        done = in_another_process(setting, code)
        assert done.returncode == 0, done.stderr
        assert len(list((tmp_path / "efficientllava").glob("*.o"))) == 1


def in_another_process(setting: dict[str, str], code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **setting}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )


SAY_PATH = (
    "import logging; logging.basicConfig()\n"
    "from efficientllava.sparse.cpu.processor import chosen_path\n"
    "print(chosen_path().name); chosen_path()\n"
)


def test_a_processor_without_features_takes_the_portable_path_and_says_it_once() -> None:
    done = in_another_process({"NUMBA_CPU_NAME": "generic"}, SAY_PATH)
    assert done.stdout.strip() == "portable" and done.stderr.count("portable path") == 1


def test_a_setting_forces_a_path() -> None:
    done = in_another_process({processor.SETTING: "portable"}, SAY_PATH)
    assert done.stdout.strip() == "portable" and not done.stderr
    with pytest.raises(UserError, match="no path 'avx9'"):
        processor.force_path("avx9")


def test_no_path_names_instructions_of_a_better_one() -> None:
    """The portable code holds no AVX, the AVX2 code no AVX-512."""
    from llvmlite import binding

    from efficientllava.sparse.cpu.sparse_kernel import SparseProduct, sparse_module

    if "avx2" not in PATHS:
        pytest.skip("not x86-64")
    for name, absent in (("portable", "ymm"), ("avx2", "zmm")):
        path = processor.paths()[name]
        machine = machine_code._target_machine(path)
        parsed = binding.parse_assembly(
            str(sparse_module(SparseProduct("float32", False, 1), path))
        )
        assert absent not in machine.emit_assembly(parsed)


assert operators.require_fit is not None  # its module defines the operators
