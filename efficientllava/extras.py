"""The packages that this installation asks for: the light core and the extras, by its metadata."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement

from efficientllava.errors import UserError

CORE = ""
DISTRIBUTION = "efficientllava"
IMPORTED_AS = {
    "sklearn": "scikit-learn",
    "markdown_it": "markdown-it-py",
    "psycopg2": "psycopg2-binary",
    "dvc_s3": "dvc-s3",
}
"""Packages that are imported under another name than they are installed by."""


@dataclass(frozen=True)
class RequiredPackage:
    """A package that is asked for here.

    Attributes:
        extra: by which extra; empty for the core.
        version: the installed one; None where there is none.
    """

    requirement: Requirement
    extra: str
    version: str | None

    @property
    def name(self) -> str:
        """As pip spells it."""
        return self.requirement.name

    @property
    def fits(self) -> bool:
        """Whether the installed version is in the range that is asked for."""
        return self.version is not None and self.requirement.specifier.contains(
            self.version, prereleases=True
        )


def required_packages() -> list[RequiredPackage]:
    """All packages of the core and of each extra whose markers hold here.

    Raises:
        UserError: the package is not installed, so that its metadata cannot be read.
    """
    try:
        lines = metadata.requires(DISTRIBUTION) or []
        extras = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError as error:
        raise UserError(
            "is not installed, so that nobody knows which versions it asks for",
            where=DISTRIBUTION,
            remedy="pip install efficientllava, or pip install -e . in a clone",
        ) from error
    return list(_applying([Requirement(line) for line in lines], [CORE, *extras]))


def _applying(requirements: list[Requirement], extras: list[str]) -> Iterator[RequiredPackage]:
    for extra in extras:
        for requirement in requirements:
            marker = requirement.marker
            holds = marker is None or marker.evaluate({"extra": extra})
            # what the core asks for is not repeated below each extra
            of_core = marker is None or marker.evaluate({"extra": CORE})
            if holds and of_core == (extra == CORE) and requirement.name != DISTRIBUTION:
                yield RequiredPackage(requirement, extra, _version(requirement.name))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def missing_package(error: ModuleNotFoundError) -> UserError | None:
    """An error that names the extra of a failed import; None where no extra has the module."""
    module = (error.name or "").partition(".")[0]
    name = IMPORTED_AS.get(module, module)
    try:
        extras = [
            package.extra
            for package in required_packages()
            if package.name == name and package.extra
        ]
    except UserError:
        return None
    if not extras:
        return None
    return UserError(
        f"the package {name} is not installed",
        where=f"extra `{extras[0]}`",
        remedy=f"pip install 'efficientllava[{extras[0]}]'",
    )
