"""A GPU that is pretended on the CPU: it refuses what a real one would refuse.

No GPU is at hand, so tensors of the CPU carry a mark "on the GPU". Every operation of torch is
intercepted: operands of which some are marked and some are not raise the error CUDA would raise,
results of marked operands are marked, and where the host would wait for the device is counted. The
numbers are the CPU's, so that results can be compared bit for bit.

Streams and events are pretended by vector clocks. For memory that is `watched`, an operation that
reads what another stream wrote, or overwrites what another still reads, without having waited for
it, raises `Race`. (On a real GPU that would give wrong numbers now and then.)
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
HOST, MAIN = "host", "main"
WAITS = {"item", "tolist", "nonzero", "__bool__", "__float__", "__int__", "__index__", "cpu"}
LIKE_SELF = {"new_empty", "new_zeros", "new_ones", "new_full", "new_tensor"}

UNTOUCHED = {
    "__getitem__", "view", "view_as", "reshape", "t", "transpose", "permute", "unsqueeze",
    "flatten", "expand", "detach", "requires_grad_", "numel", "element_size", "data_ptr", "size",
    "dim", "stride", "is_contiguous", "untyped_storage", "is_floating_point", "storage_offset",
    "__len__", "is_complex", "register_hook",
}  # fmt: skip
"""What looks at a tensor's shape and not at its numbers."""


class Race(RuntimeError):
    """Two streams use the same memory without an order."""


class Stream:
    """One queue of work."""

    def __init__(self, gpu: PretendGPU, name: str) -> None:
        self.gpu, self.name = gpu, name

    def record_event(self) -> Event:
        """An event after what is queued now."""
        return Event(self.gpu, dict(self.gpu.clocks[self.name]))

    def wait_event(self, event: Event) -> None:
        """What is queued from now on comes after the event."""
        self.gpu.learn(self.name, event.clock)


class Event:
    """A point in a queue."""

    def __init__(self, gpu: PretendGPU, clock: dict[str, int]) -> None:
        self.gpu, self.clock = gpu, clock

    def synchronize(self) -> None:
        """The host waits for it."""
        self.gpu.learn(HOST, self.clock)


class PretendGPU(TorchFunctionMode):
    """The mode; `with pretend_gpu(monkeypatch) as gpu:` sets it up.

    Attributes:
        waits: names of operations in which the host would have waited for the device.
        watch: `data_ptr` of storages whose order is checked.
        most: of bytes that `watched` storages have.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.watch: set[int] = set()
        self.clocks: dict[str, dict[str, int]] = {HOST: {}, MAIN: {}}
        self.current = MAIN
        self._wrote: dict[int, tuple[str, int]] = {}
        self._read: dict[int, dict[str, int]] = {}

    def learn(self, stream: str, clock: dict[str, int]) -> None:
        """A stream now comes after what a clock says."""
        mine = self.clocks[stream]
        for name, count in clock.items():
            mine[name] = max(mine.get(name, 0), count)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        getter = getattr(getattr(func, "__self__", None), "__name__", "")
        first = args[0] if args else None
        if name == "__get__" and getter == "device":
            return GPU if marked(first) else func(first)
        if name == "__get__" and getter == "is_cuda":
            return marked(first)
        if name == "__set__":
            func(*args)
            if getter == "data":
                mark(first, marked(args[1]))
            return None
        if name == "__get__":
            return self._marking(func(*args), marked(first))
        if name == "backward":
            with self:  # hooks and recomputation are intercepted, too
                torch.autograd.graph._engine_run_backward(
                    (first,), (torch.ones_like(first),), False, False, (),
                    allow_unreachable=True, accumulate_grad=True,
                )  # fmt: skip
            return None
        if name == "register_hook":  # a gradient lies where its tensor does
            told, on_gpu = args[1], marked(first)
            return func(first, lambda gradient: told(mark(gradient, on_gpu)))
        if name in ("to", "cuda", "cpu", "type"):
            return self._moved(func, name, first, args[1:], kwargs)
        if name == "scaled_dot_product_attention" and kwargs.get("attn_mask") is not None:
            mark(kwargs["attn_mask"], marked(first))  # made by torch.vmap, which loses marks
        if name == "histc":  # of integers on CUDA only
            return self._marking(func(first.float(), *args[1:], **kwargs).int(), marked(first))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        tensors = [tensor for tensor in tensors if not tensor.is_meta]
        wanted = kwargs.get("device")
        if wanted is not None and torch.device(wanted).type == "cuda":
            kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)
        on_gpu = any(marked(tensor) for tensor in tensors)
        if name == "numpy" and on_gpu:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if name in WAITS and on_gpu:
            self.waits.append(name)
        if name in ("__getitem__", "__setitem__") and on_gpu:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            picks = [each for each in index if isinstance(each, torch.Tensor)]
            if any(each.dtype == torch.bool for each in picks):
                self.waits.append("boolean index")
            tensors = [first, *args[2:]]  # an index may lie on the CPU
            tensors = [each for each in tensors if isinstance(each, torch.Tensor)]
        if name not in ("copy_", "_has_compatible_shallow_copy_type"):
            _same_device(name, tensors)
        self._order(name, tensors, on_gpu)
        result = func(*args, **kwargs)
        if wanted is not None:
            on_gpu = torch.device(wanted).type == "cuda"
        elif name in LIKE_SELF:
            on_gpu = marked(first)
        elif name == "copy_":
            return result
        return self._marking(result, on_gpu)

    def _marking(self, result: Any, on_gpu: bool) -> Any:
        if on_gpu:
            tree_map(lambda leaf: mark(leaf, True), result)
        return result

    def _moved(self, func: Any, name: str, tensor: Any, args: Any, kwargs: Any) -> Any:
        if name == "type" and not args and not kwargs:
            return func(tensor)
        target = marked(tensor)
        dtypes = [kwargs.pop("dtype", None)]
        for value in args:
            if isinstance(value, torch.Tensor):
                target, value = marked(value), value.dtype
            elif isinstance(value, torch.device) or (isinstance(value, str) and name == "to"):
                target = torch.device(value).type == "cuda"
            if isinstance(value, torch.dtype):
                dtypes.append(value)
        if (device := kwargs.pop("device", None)) is not None:
            target = torch.device(device).type == "cuda"
        if tensor.is_meta or device == "meta" or device == torch.device("meta"):
            return torch.Tensor.to(tensor, device=device)
        target = {"cuda": True, "cpu": False}.get(name, target)
        moves = target != marked(tensor)
        if moves and not target:
            self.waits.append("cpu")
        if moves:
            self._order("to", [tensor], True)
        dtype = next((each for each in dtypes if each is not None), tensor.dtype)
        result = torch.Tensor.to(tensor, dtype=dtype, copy=moves or bool(kwargs.get("copy")))
        return mark(result, target)

    def _order(self, name: str, tensors: list[torch.Tensor], on_gpu: bool) -> None:
        # by where a tensor begins: weights that share a piece of memory do not concern each other
        # (inside torch.vmap, where masks are made, tensors have no memory of their own)
        touched = [
            (tensor.data_ptr(), index)
            for index, tensor in enumerate(tensors)
            if not torch._C._functorch.is_batchedtensor(tensor)
            and tensor.untyped_storage().data_ptr() in self.watch
        ]
        if not touched or name in UNTOUCHED:
            return
        stream = self.current if on_gpu else HOST
        if stream != HOST:
            self.learn(stream, self.clocks[HOST])
        clock = self.clocks[stream]
        clock[stream] = clock.get(stream, 0) + 1
        for pointer, index in touched:
            writer, at = self._wrote.get(pointer, (stream, 0))
            if clock.get(writer, 0) < at:
                raise Race(f"{name} on {stream}: {writer} has not been waited for")
            if name == "copy_" and index == 0:
                for reader, when in self._read.get(pointer, {}).items():
                    if clock.get(reader, 0) < when:
                        raise Race(f"{name} on {stream} overwrites what {reader} still reads")
                self._wrote[pointer], self._read[pointer] = (stream, clock[stream]), {}
            else:
                self._read.setdefault(pointer, {})[stream] = clock[stream]


def marked(value: Any) -> bool:
    """Whether a tensor is on the pretended GPU."""
    return isinstance(value, torch.Tensor) and getattr(value, "_pretended", False)


def mark(value: Any, on_gpu: bool) -> Any:
    """Put the mark on a tensor, or take it away."""
    if isinstance(value, torch.Tensor):
        value._pretended = on_gpu  # type: ignore[attr-defined]
    return value


def _same_device(name: str, tensors: list[torch.Tensor]) -> None:
    with torch._C.DisableTorchFunction():
        many = [tensor for tensor in tensors if tensor.dim() > 0]
    if len({marked(tensor) for tensor in many}) > 1 or (
        many and not marked(many[0]) and any(marked(tensor) for tensor in tensors)
    ):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu! (in {name})"
        )


@contextmanager
def pretend_gpu(patch: pytest.MonkeyPatch, free: int = 80 * 2**30) -> Iterator[PretendGPU]:
    """Let this process have one GPU with so many free bytes."""
    gpu = PretendGPU()

    def stream(device: Any = None) -> Stream:
        name = f"stream {len(gpu.clocks)}"
        gpu.clocks[name] = {}
        return Stream(gpu, name)

    @contextmanager
    def using(chosen: Stream) -> Iterator[None]:
        before, gpu.current = gpu.current, chosen.name
        try:
            yield
        finally:
            gpu.current = before

    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: "a pretended GPU",
        "mem_get_info": lambda device=None: (free, free),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "Stream": stream,
        "stream": using,
        "current_stream": lambda device=None: Stream(gpu, gpu.current),
    }.items():
        patch.setattr(torch.cuda, name, value)
    # a build of torch for CUDA would ask its driver, which is not there, for the stream in use
    patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 0))
    patch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    patch.setattr("torch.cuda._pin_memory_utils.pin_memory", lambda pointer, size: None)
    patch.setattr("torch.cuda._pin_memory_utils.unpin_memory", lambda pointer: None)
    submit = ThreadPoolExecutor.submit

    def watched(pool: Any, work: Any, /, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            with gpu:  # modes are a thread's own
                return work(*args, **kwargs)

        return submit(pool, run)

    patch.setattr(ThreadPoolExecutor, "submit", watched)
    subclass = torch.Tensor._make_subclass

    def parameter(kind: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
        return mark(subclass(kind, data, *args, **kwargs), marked(data))

    patch.setattr(torch.Tensor, "_make_subclass", staticmethod(parameter))
    # tensors that autograd keeps are seen without the mode when kept and with it when asked for
    checks = torch.utils.checkpoint._allowed_determinism_checks_to_fns
    patch.setitem(checks, "default", checks["none"])
    # set by open_device for the whole process
    patch.setattr(torch, "use_deterministic_algorithms", lambda *args, **kwargs: None)
    with gpu:
        yield gpu
    gc.collect()  # what ends with its objects ends before the GPU does
