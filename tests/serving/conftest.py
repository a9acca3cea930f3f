"""Tiny checkpoints behind a real HTTP server in a thread of this process."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import openai
import pytest
import torch
import uvicorn
from PIL import Image

from efficientllava.models.checkpoint import save_checkpoint
from efficientllava.models.families import adapter_for
from efficientllava.serving.application import application
from efficientllava.serving.engine import Engine
from efficientllava.serving.server import LOOPBACK, _listening
from efficientllava.sparse.checkpoint import pack_checkpoint
from tests.export.conftest import tiny_model, tiny_processor


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint whose decoder is 75 % zeros, as it is and packed."""
    folder = tmp_path_factory.mktemp("checkpoints")
    model = tiny_model()
    generator = torch.Generator().manual_seed(1)
    for matrix in adapter_for(model).matrices:
        matrix.weight.mul_(torch.rand(matrix.weight.shape, generator=generator) < 0.25)
    save_checkpoint(model, tiny_processor(), folder / "pruned", {"pruning.json": {}})
    pack_checkpoint(folder / "pruned", folder / "export" / "packed")
    return {"pruned": folder / "pruned", "packed": folder / "export"}


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    path.write_bytes(noise())
    return path


def noise() -> bytes:
    out = BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def picture_of_size(width: int, height: int) -> bytes:
    out = BytesIO()
    Image.new("1", (width, height)).save(out, "PNG")
    return out.getvalue()


@dataclass(frozen=True)
class Served:
    """A running server."""

    engine: Engine
    address: str

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0)


@contextmanager
def running(folder: Path, waiting: int = 8, key: str | None = None) -> Iterator[Served]:
    """Serve a checkpoint as the model `tiny`."""
    with _listening("127.0.0.1", 0) as listener:
        engine = Engine(folder, "cpu", 1, waiting, 16, lambda: None)
        app = application(engine, "tiny", LOOPBACK, 10**6, key)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        end = time.monotonic() + 60
        while not (engine.ready.is_set() and server.started):
            assert time.monotonic() < end and engine.failure is None, engine.failure
            time.sleep(0.02)
        try:
            yield Served(engine, f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
