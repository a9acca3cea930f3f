"""`efficientllava doctor`, `--version`, completion, and what is said when an extra is missing."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

import efficientllava.cli
from efficientllava import extras
from efficientllava.cli import app, commands
from efficientllava.commands import doctor
from efficientllava.errors import UserError
from efficientllava.extras import missing_package
from tests.test_light_core import WITHOUT_EXTRAS

REQUIRES = [
    "torch<3,>=2.9",
    "numpy>=1.26",
    "fastapi<0.151; extra == 'pipeline'",
    "prefect>=3.8; extra == 'pipeline'",
    "efficientllava[report]; extra == 'pipeline'",
    "matplotlib>=3.10; extra == 'report'",
    "scikit-learn>=1.7; extra == 'pipeline'",
    "onnx; python_version < '3' and extra == 'report'",
]
VERSIONS = {
    "torch": "2.13.0+cpu", "numpy": "1.26.4", "fastapi": "0.150.0", "prefect": "3.8.8",
    "matplotlib": "3.11.2", "scikit-learn": "1.9.1",
}  # fmt: skip


class Metadata(dict[str, str]):
    def get_all(self, name: str) -> list[str]:
        return ["pipeline", "report"]


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is installed, by name; the requirements are those above."""
    installed = dict(VERSIONS)

    def version(name: str) -> str:
        if name not in installed:
            raise extras.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(extras.metadata, "requires", lambda name: REQUIRES)
    monkeypatch.setattr(
        extras.metadata, "metadata", lambda name: Metadata({"Requires-Python": ">=3.11"})
    )
    monkeypatch.setattr(extras.metadata, "version", version)
    return installed


@pytest.fixture(autouse=True)
def no_servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's own configuration."""
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def found() -> dict[str, doctor.Finding]:
    return {f"{each.section} {each.name}": each for each in doctor.findings()}


def test_all_is_well(versions: dict[str, str]) -> None:
    lines = found()
    assert {line.state for line in lines.values()} <= {"ok", "note"}
    assert lines["versions torch"].value == "2.13.0+cpu (<3,>=2.9)"
    assert lines["extras report"].value == "matplotlib 3.11.2", "markers that do not hold here"
    assert "fastapi 0.150.0" in lines["extras pipeline"].value
    for name in ("processor cores", "devices cpu", "memory host", "disk here", "servers Prefect"):
        assert lines[name].value
    done = CliRunner().invoke(commands, ["doctor"])
    assert done.exit_code == 0, done.output
    assert "\nversions\n" in f"\n{done.output}" and "torch            2.13.0" in done.output


def test_a_core_package_that_does_not_fit(versions: dict[str, str]) -> None:
    versions["torch"] = "2.8.1"
    del versions["numpy"]
    lines = found()
    assert lines["versions torch"].state == lines["versions numpy"].state == "bad"
    assert "2.8.1; <3,>=2.9 is needed: pip install 'torch<3,>=2.9'" in lines["versions torch"].value
    assert lines["versions numpy"].value == "not installed; >=1.26 is needed"
    done = CliRunner().invoke(commands, ["doctor"])
    assert isinstance(done.exception, UserError) and "x torch" in done.output
    assert str(done.exception).startswith("the lines marked x: 2 of these")


def test_pins_count_where_the_extra_is_installed(versions: dict[str, str]) -> None:
    versions["fastapi"] = "0.151.0"
    assert found()["extras fastapi"].state == "bad"
    del versions["prefect"]
    lines = found()
    assert "extras fastapi" not in lines, "somebody else's fastapi"
    assert lines["extras pipeline"].value == "not installed (lacks prefect)"
    assert lines["extras pipeline"].state == "note"


def test_a_package_that_cannot_be_imported(
    versions: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_module(name: str) -> None:
        raise OSError("libtorch.so: cannot open shared object file\nmore")

    monkeypatch.setattr(doctor, "import_module", import_module)
    lines = found()
    assert lines["versions torch"].state == "bad"
    assert lines["versions torch"].value.endswith("libtorch.so: cannot open shared object file")


def test_nothing_is_known_of_a_package_that_is_not_installed(
    versions: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def requires(name: str) -> list[str]:
        raise extras.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(extras.metadata, "requires", requires)
    assert found()["versions packages"].state == "note"
    assert missing_package(ModuleNotFoundError(name="matplotlib")) is None


@pytest.fixture
def server() -> Iterator[str]:
    """A server that is well at /api/health and nowhere else."""

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/api/health" else 404)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{serving.server_port}"
    serving.shutdown()
    serving.server_close()


def servers() -> dict[str, doctor.Finding]:
    return {each.name: each for each in doctor._servers()}


def test_servers(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Asked past a proxy; without the password; any status is an answer."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("PREFECT_API_URL", f"http://{server}/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{server}?token=secret")
    lines = servers()
    assert lines["Prefect"].value == f"http://{server}/api answers"
    assert lines["MLflow"].value == f"http://{server} answers with status 404"
    monkeypatch.setenv("PREFECT_API_URL", "http://me:secret@127.0.0.1:9/api")
    line = servers()["Prefect"]
    assert line.state == "note" and "http://127.0.0.1:9/api does not answer" in line.value


def test_servers_of_configuration_files(server: str, tmp_path: Path) -> None:
    assert servers()["MLflow"].value == "none configured"
    (tmp_path / "params.yaml").write_text("tracking:\n  uri: sqlite:///mlflow.db\n")
    (tmp_path / "profiles.toml").write_text(
        f'active = "team"\n[profiles.team]\nPREFECT_API_URL = "http://{server}/api"\n'
    )
    lines = servers()
    assert lines["Prefect"].value == f"http://{server}/api answers"
    assert lines["MLflow"].value == "sqlite:///mlflow.db, no server"


def test_doctor_needs_no_extra() -> None:
    code = f"{WITHOUT_EXTRAS}\nfrom efficientllava.cli import app\nsys.argv = ['', 'doctor']\napp()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert "memory" in done.stdout and "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (0, 2), "2 where versions of this machine do not fit"


def test_version_and_completion() -> None:
    done = CliRunner().invoke(commands, ["--version"])
    assert done.output.strip() == f"efficientllava {efficientllava.__version__}"
    words = {
        "_EFFICIENTLLAVA_COMPLETE": "complete_bash",
        "COMP_WORDS": "efficientllava do",
        "COMP_CWORD": "1",
    }
    done = CliRunner().invoke(commands, [], env=words, prog_name="efficientllava")
    assert done.output.split() == ["doctor"]


def test_missing_extra(
    versions: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking(name: str) -> None:
        def command() -> None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        monkeypatch.setattr(efficientllava.cli, "commands", command)

    lacking("sklearn.datasets")
    with pytest.raises(SystemExit) as end:
        app()
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert "extra `pipeline`: the package scikit-learn is not installed" in told
    assert "pip install 'efficientllava[pipeline]'" in told
    lacking("efficientllava.nowhere")
    with pytest.raises(ModuleNotFoundError):
        app()
