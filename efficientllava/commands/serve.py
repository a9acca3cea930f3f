"""The command `efficientllava serve`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from efficientllava.errors import UserError

KEY = "EFFICIENTLLAVA_API_KEY"
MEGABYTE = 10**6
Threads = Annotated[int, typer.Option(min=1, max=1024, help="threads")]


def serve(  # noqa: PLR0913 every parameter is an option of the command
    model: Annotated[
        str, typer.Argument(help="a checkpoint, an exported model, or models:/NAME@champion")
    ],
    host: Annotated[
        str, typer.Option(help=f"address to listen on; another than this machine's needs {KEY}")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="of the model, in requests", show_default="the folder's")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    threads: Threads = 1,
    queue: Annotated[
        int, typer.Option(min=0, help="requests that wait while one is answered")
    ] = 16,
    new_tokens: Annotated[
        int, typer.Option(min=1, help="longest answer where a request does not say")
    ] = 256,
    megabytes: Annotated[int, typer.Option(min=1, help="largest request")] = 20,
    grace: Annotated[
        int, typer.Option(min=0, help="seconds that answers have to end after SIGTERM")
    ] = 30,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow, for models:/", show_default="MLFLOW_TRACKING_URI")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="let other machines ask without a key")
    ] = False,
) -> None:
    """Serve a model by the chat-completions protocol, one request at a time (docs/serve.md)."""
    from efficientllava.serving.server import Settings, require_access, serve_checkpoint
    from efficientllava.serving.source import checkpoint_of, name_of

    if (key := os.environ.get(KEY)) is not None and not key.strip():
        raise UserError("the key is empty", where=KEY, remedy="give it a value, or unset it")
    if key is None and not insecure:
        require_access(host, port, KEY)
    with checkpoint_of(model, tracking_uri) as folder:
        settings = Settings(
            name=name or name_of(model),
            host=host,
            port=port,
            device=device,
            threads=threads,
            waiting=queue,
            new_tokens=new_tokens,
            most_bytes=megabytes * MEGABYTE,
            grace=grace,
            key=key,
        )
        serve_checkpoint(folder, settings, lambda line: typer.echo(line, err=True))
