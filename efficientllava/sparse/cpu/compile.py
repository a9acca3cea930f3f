"""LLVM code to machine code, kept on disk: the second process starts without compiling."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path as FilePath
from typing import Any

from efficientllava.sparse.cpu.processor import Path

logger = logging.getLogger(__name__)

ENTRY = "work"
"""Name of a module's function that is called."""
_lock = threading.Lock()
_addresses: dict[tuple[Any, Path], int] = {}
_engines: list[Any] = []


def address_of(build: Callable[[Any, Path], Any], kernel: Any, path: Path) -> int:
    """Address of the machine code of a kernel.

    Args:
        build: makes the module of (kernel, path), an `llvmlite.ir.Module` with a function `work`.
        kernel: hashable; its repr decides with the source and the path which code this is.
    """
    with _lock:
        if (found := _addresses.get((kernel, path))) is None:
            found = _addresses[kernel, path] = _load(_machine_code(build, kernel, path), path)
    return found


def cache_folder() -> FilePath:
    """Where machine code is kept: numba's folder where it is set, else the user's cache."""
    if folder := os.environ.get("NUMBA_CACHE_DIR"):
        return FilePath(folder) / "efficientllava"
    home = os.environ.get("XDG_CACHE_HOME") or FilePath.home() / ".cache"
    return FilePath(home) / "efficientllava" / "kernels"


def _machine_code(build: Callable[[Any, Path], Any], kernel: Any, path: Path) -> bytes:
    name = hashlib.sha256(f"{_sources()} {kernel!r} {path!r}".encode()).hexdigest()
    file = cache_folder() / f"{name[:40]}.o"
    try:
        kept = file.read_bytes()
    except OSError:
        kept = b""
    # a damaged file would crash the process: its first bytes are a digest of the rest
    if kept and kept[:32] == hashlib.sha256(kept[32:]).digest():
        return kept[32:]
    code = _compile(build(kernel, path), path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # several processes may compile the same kernel: each writes a file of its own
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        temporary.write_bytes(hashlib.sha256(code).digest() + code)
        temporary.replace(file)
    except OSError as error:
        logger.warning("sparse: compiled kernels cannot be kept in %s: %s", file.parent, error)
    return code


@cache
def _sources() -> str:
    """A digest of what decides a kernel's code besides its kind: our source and the versions."""
    import llvmlite
    from llvmlite import binding

    digest = hashlib.sha256(f"{llvmlite.__version__} {binding.llvm_version_info}".encode())
    for file in sorted(FilePath(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _target_machine(path: Path) -> Any:
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    binding.initialize_native_asmparser()
    target = binding.Target.from_default_triple()
    return target.create_target_machine(
        cpu=path.cpu, features=path.features, opt=3, codemodel="jitdefault", jit=True
    )


def _compile(module: Any, path: Path) -> bytes:
    from llvmlite import binding

    machine = _target_machine(path)
    module.triple = machine.triple
    module.data_layout = str(machine.target_data)
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    options = binding.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = False  # vectors are written out
    builder = binding.create_pass_builder(machine, options)
    builder.getModulePassManager().run(parsed, builder)
    return machine.emit_object(parsed)


def _load(code: bytes, path: Path) -> int:
    from llvmlite import binding, ir

    machine = _target_machine(path)
    empty = binding.parse_assembly(str(ir.Module()))
    engine = binding.create_mcjit_compiler(empty, machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)  # owns the code
    return engine.get_function_address(ENTRY)
