"""A real PostgreSQL and an S3 server on this machine, for tests; skipped where they are not."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

BUCKET = "team"
PATIENCE = 1800
"""Seconds until a server answers or a command ends, on a machine at work for others too."""


@dataclass
class Servers:
    """Where they are, and the environment that their clients need."""

    port: int
    endpoint: str
    environment: dict[str, str] = field(default_factory=dict)

    def database(self, name: str, driver: str = "postgresql") -> str:
        return f"{driver}://team@127.0.0.1:{self.port}/{name}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def program(name: str) -> Path | None:
    """A program of PostgreSQL: on the path, or where Debian puts it."""
    places = [shutil.which(name), *sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))]
    found = [Path(place) for place in places if place and Path(place).is_file()]
    return found[-1] if found else None


def missing() -> str:
    """Why the servers cannot be started here; empty when they can."""
    if program("initdb") is None or program("postgres") is None:
        return "PostgreSQL is not installed (apt-get install postgresql)"
    names = ("moto", "boto3", "dvc_s3", "psycopg2")
    lacking = [name for name in names if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(lacking)} (extra `dev`)" if lacking else ""


needs_servers = pytest.mark.skipif(bool(missing()), reason=missing())


def unprivileged() -> dict[str, int]:
    """PostgreSQL refuses to run as root: then it runs as a user that has no rights."""
    if os.geteuid():
        return {}
    names = [user.pw_name for user in pwd.getpwall()]
    user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    return {"user": user.pw_uid, "group": user.pw_gid}


@contextmanager
def postgres(folder: Path, port: int, *databases: str) -> Iterator[None]:
    """A cluster that trusts whoever comes over the loopback interface."""
    identity = unprivileged()
    folder.mkdir()
    if identity:
        os.chown(folder, identity["user"], identity["group"])
        for parent in folder.parents:  # pytest's folders are closed to others
            if parent.stat().st_uid == os.geteuid() and parent.is_relative_to("/tmp/"):
                parent.chmod(parent.stat().st_mode | 0o711)
    data = folder / "data"
    make = [program("initdb"), "-D", data, "-U", "team", "--auth=trust", "--no-sync"]
    subprocess.run([*map(str, make)], check=True, stdout=subprocess.DEVNULL, cwd="/", **identity)
    serve = [program("postgres"), "-D", data, "-p", port, "-h", "127.0.0.1", "-k", folder, "-F"]
    with open(folder.parent / "postgres.log", "w") as log:
        process = subprocess.Popen(
            [*map(str, serve)], stdout=log, stderr=subprocess.STDOUT, cwd="/", **identity
        )
    try:
        connection = connected(port)
        connection.autocommit = True
        with connection.cursor() as cursor:
            for name in databases:
                cursor.execute(f"CREATE DATABASE {name}")
        connection.close()
        yield
    finally:
        process.send_signal(2)  # ends at once, whoever is connected
        process.wait(30)


def connected(port: int):  # type: ignore[no-untyped-def]
    import psycopg2

    end = time.monotonic() + 300
    while True:
        try:
            return psycopg2.connect(host="127.0.0.1", port=port, user="team", dbname="postgres")
        except psycopg2.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


@contextmanager
def s3(folder: Path, port: int) -> Iterator[str]:
    """moto's server, with one bucket."""
    with open(folder / "moto.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + PATIENCE
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Both servers, with the databases `mlflow` and `prefect` and a bucket."""
    folder, port = tmp_path_factory.mktemp("servers"), free_port()
    with postgres(folder / "postgres", port, "mlflow", "prefect"), s3(folder, free_port()) as url:
        made = Servers(
            port,
            url,
            {
                "AWS_ACCESS_KEY_ID": "team",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": url,
            },
        )
        with pytest.MonkeyPatch.context() as patch:
            for name, value in made.environment.items():
                patch.setenv(name, value)
            import boto3

            boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield made


@contextmanager
def process_of(
    command: list[str], environment: dict[str, str], log: Path, ready: str
) -> Iterator[None]:
    """Run a server for the time of the block, from when it answers at `ready`."""
    with open(log, "w") as words:
        process = subprocess.Popen(
            command,
            cwd=log.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + PATIENCE
        while not answers(ready):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.5)
        yield
    finally:
        os.killpg(process.pid, 15)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def objects(servers: Servers) -> list[str]:
    """Names of everything in the bucket."""
    import boto3

    session = boto3.Session(
        servers.environment["AWS_ACCESS_KEY_ID"], servers.environment["AWS_SECRET_ACCESS_KEY"]
    )
    client = session.client("s3", endpoint_url=servers.endpoint, region_name="us-east-1")
    return [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]
