"""The machine's versions, processor, devices, memory, disk and servers. Needs no extra."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from packaging.specifiers import SpecifierSet

from efficientllava import __version__
from efficientllava.errors import UserError
from efficientllava.extras import CORE, DISTRIBUTION, RequiredPackage, required_packages
from efficientllava.reading import read_text, require_plain_yaml

GIB = 2**30
IMPORTED = ("torch", "transformers", "numba")
"""Imported as a check: these packages have compiled parts."""
FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "asimd")
SECONDS = 5
"""That a server has to answer."""

State = Literal["ok", "note", "bad"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        state: "bad" is what keeps the package from working as it is installed; a "note" is not.
    """

    section: str
    name: str
    value: str
    state: State = "ok"


def findings() -> Iterator[Finding]:
    """Everything, section by section, as it is found."""
    yield from _versions()
    yield from _processor()
    yield from _devices()
    yield from _memory()
    yield from _disk()
    yield from _servers()


# --- versions ---------------------------------------------------------------------------------


def _versions() -> Iterator[Finding]:
    section = "versions"
    yield Finding(section, DISTRIBUTION, __version__)
    try:
        packages = required_packages()
        range_ = metadata.metadata(DISTRIBUTION)["Requires-Python"] or ""
    except UserError as error:
        yield Finding(section, "packages", error.what, "note")
        return
    python = platform.python_version()
    if SpecifierSet(range_).contains(python, prereleases=True):
        yield Finding(section, "Python", f"{python} on {platform.platform()}")
    else:
        yield Finding(section, "Python", f"{python}; {range_} is needed", "bad")
    for package in packages:
        if package.extra == CORE:
            yield _package(section, package)
    for name in IMPORTED:
        try:
            import_module(name)
        except (ImportError, OSError) as error:
            yield Finding(section, name, f"cannot be imported: {_first_line(error)}", "bad")
    yield from _extras(packages)


def _package(section: str, package: RequiredPackage) -> Finding:
    range_ = str(package.requirement.specifier) or "any version"
    if package.version is None:
        return Finding(section, package.name, f"not installed; {range_} is needed", "bad")
    if not package.fits:
        problem = f"{package.version}; {range_} is needed: pip install '{package.requirement.name}"
        return Finding(section, package.name, f"{problem}{package.requirement.specifier}'", "bad")
    return Finding(section, package.name, f"{package.version} ({range_})")


def _extras(packages: list[RequiredPackage]) -> Iterator[Finding]:
    """Pins of extras count where the extra is installed as a whole."""
    for extra in sorted({package.extra for package in packages if package.extra != CORE}):
        installed = [package for package in packages if package.extra == extra]
        missing = [package.name for package in installed if package.version is None]
        if missing:
            yield Finding("extras", extra, f"not installed (lacks {', '.join(missing)})", "note")
            continue
        versions = ", ".join(f"{package.name} {package.version}" for package in installed)
        yield Finding("extras", extra, versions)
        yield from (_package("extras", package) for package in installed if not package.fits)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# --- machine ----------------------------------------------------------------------------------


def _processor() -> Iterator[Finding]:
    info = _fields(Path("/proc/cpuinfo"))
    yield Finding("processor", "model", info.get("model name") or platform.machine())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("processor", "cores", f"{cores} for this process, {os.cpu_count()} in all")
    flags = set((info.get("flags") or info.get("Features") or "").split())
    features = [name for name in FEATURES if name in flags]
    yield Finding("processor", "features", " ".join(features) or "not known")


def _fields(file: Path) -> dict[str, str]:
    """The first value of each `name: value` line; empty where there is no such file."""
    fields: dict[str, str] = {}
    if file.is_file():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            name, colon, value = line.partition(":")
            if colon:
                fields.setdefault(name.strip(), value.strip())
    return fields


def _devices() -> Iterator[Finding]:
    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda"):
        return
    yield Finding("devices", "cpu", f"torch uses {torch.backends.cpu.get_cpu_capability()}")
    if torch.version.cuda is None:
        yield Finding("devices", "cuda", "this torch was built for the CPU alone", "note")
    elif not torch.cuda.is_available():
        yield Finding("devices", "cuda", f"CUDA {torch.version.cuda}, no GPU is seen", "note")
    else:
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            text = f"{torch.cuda.get_device_name(number)}, {_gib(free)} of {_gib(total)} free"
            yield Finding("devices", f"cuda:{number}", f"{text}, CUDA {torch.version.cuda}")


def _gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB"


def _memory() -> Iterator[Finding]:
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = (page * os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    available = _fields(Path("/proc/meminfo")).get("MemAvailable", "").removesuffix(" kB")
    free = int(available) * 1024 if available.isdigit() else free
    yield Finding("memory", "host", f"{_gib(free)} of {_gib(total)} free")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (maximum := limit.read_text(encoding="utf-8").strip()).isdigit():
        yield Finding("memory", "limit", f"{_gib(int(maximum))} for this container")


def _disk() -> Iterator[Finding]:
    for name, folder in (("here", Path.cwd()), ("temporary", Path(tempfile.gettempdir()))):
        usage = shutil.disk_usage(folder)
        writable = os.access(folder, os.W_OK)
        text = f"{_gib(usage.free)} of {_gib(usage.total)} free in {folder}"
        state: State = "ok" if writable else "note"
        text += "" if writable else ", which cannot be written"
        yield Finding("disk", name, text, state)


# --- servers ----------------------------------------------------------------------------------


def _servers() -> Iterator[Finding]:
    prefect = os.environ.get("PREFECT_API_URL") or _prefect_profile()
    if prefect:
        yield _answering("Prefect", prefect)
    else:
        yield Finding("servers", "Prefect", "none configured: each run starts one of its own")
    mlflow = os.environ.get("MLFLOW_TRACKING_URI") or _tracking_uri(Path("params.yaml"))
    if not mlflow:
        yield Finding("servers", "MLflow", "none configured")
    elif urlsplit(mlflow).scheme in ("http", "https"):
        yield _answering("MLflow", mlflow)
    else:
        yield Finding("servers", "MLflow", f"{shown(mlflow)}, no server")


def _prefect_profile() -> str | None:
    """The server of Prefect's active profile."""
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")
    try:
        profiles = tomllib.loads(read_text(home / "profiles.toml"))
        active = os.environ.get("PREFECT_PROFILE") or profiles["active"]
        return str(profiles["profiles"][active]["PREFECT_API_URL"])
    except (UserError, KeyError, TypeError, ValueError, RecursionError):
        return None


def _tracking_uri(parameters: Path) -> str | None:
    """The value in params.yaml; None without the file or the value."""
    import yaml  # comes with transformers

    try:
        text = read_text(parameters)
        require_plain_yaml(text, str(parameters))
        return str(yaml.safe_load(text)["tracking"]["uri"])
    except (UserError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return None


def _answering(name: str, address: str) -> Finding:
    """Whether a server answers; any HTTP status is an answer."""
    server = shown(address)
    proxies = urllib.request.ProxyHandler({} if _is_loopback(address) else None)
    try:
        request = urllib.request.Request(f"{address.rstrip('/')}/health")
        urllib.request.build_opener(proxies).open(request, timeout=SECONDS).close()
    except urllib.error.HTTPError as error:
        return Finding("servers", name, f"{server} answers with status {error.code}", "note")
    except (OSError, ValueError) as error:
        return Finding("servers", name, f"{server} does not answer ({_first_line(error)})", "note")
    return Finding("servers", name, f"{server} answers")


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def shown(address: str) -> str:
    """An address without the name and password that may stand in it."""
    location = urlsplit(address).netloc
    without_query = address.partition("?")[0]
    return without_query.replace(location, location.rpartition("@")[2], 1)
