"""The aliases of a registered model: `champion`, the one before it, and the way back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from efficientllava.errors import UserError

CHAMPION, PREVIOUS, CANDIDATE = "champion", "previous", "candidate"
HISTORY = "champion.history"
"""Tag of the registered model: numbers of earlier champions, the latest one last."""
ROLLED_BACK = "rolled_back"
"""Tag of a version that was champion and is to be so no more: since when."""
PROMOTION = "promotion."
"""How tags of a version begin that record the checks of the promotion."""
VERDICT, AGAINST = f"{PROMOTION}verdict", f"{PROMOTION}against"
PASSED, NOBODY = "pass", "no champion"


@dataclass(frozen=True)
class Aliases:
    """One registered model of MLflow."""

    client: Any
    name: str

    def version(self, alias: str) -> str | None:
        """The number that an alias points at; None where there is no such alias."""
        number = self.client.get_registered_model(self.name).aliases.get(alias)
        return None if number is None else str(number)

    def crown(self, version: str, rule: str) -> None:
        """Give `champion` to a version. The former one becomes `previous` and loses its tags.

        Args:
            rule: why, in words: the tag `champion.rule`.
        """
        former = self.version(CHAMPION)
        if former is not None and former != version:
            self._remember([*self._history(), former])
            self.client.set_registered_model_alias(self.name, PREVIOUS, former)
        self.client.set_registered_model_alias(self.name, CHAMPION, version)
        if self.version(CANDIDATE) == version:
            self.client.delete_registered_model_alias(self.name, CANDIDATE)
        if former is not None and former != version:
            self._clear(former)
        self._describe(version, rule)

    def roll_back(self) -> tuple[str, str]:
        """Make the previous champion champion again; the present one is marked.

        Returns:
            The number of the champion, and of the one that it was.

        Raises:
            UserError: there is no champion, or none before it.
        """
        present, history = self.version(CHAMPION), self._history()
        if present is None or not history:
            raise UserError(
                "there is no champion" if present is None else "there was no champion before it",
                where=f"MLflow, registered model {self.name}",
                remedy="set the alias `champion` in MLflow, or run the pipeline",
            )
        restored, earlier = history[-1], history[:-1]
        self.client.set_model_version_tag(self.name, present, ROLLED_BACK, _now())
        self.client.set_registered_model_alias(self.name, CHAMPION, restored)
        self._remember(earlier)
        if earlier:
            self.client.set_registered_model_alias(self.name, PREVIOUS, earlier[-1])
        elif self.version(PREVIOUS) is not None:
            self.client.delete_registered_model_alias(self.name, PREVIOUS)
        self._clear(present)
        if ROLLED_BACK in self.client.get_model_version(self.name, restored).tags:
            self.client.delete_model_version_tag(self.name, restored, ROLLED_BACK)
        self._describe(restored, f"rolled back to it from version {present}")
        return restored, present

    def promote(self, version: str) -> str:
        """Give `champion` to a version whose checks all passed, against the present champion.

        Returns:
            The number of the former champion, or "no champion".

        Raises:
            UserError: it was not checked, failed, or was checked against another champion.
        """
        version = str(version)
        tags = self.client.get_model_version(self.name, version).tags
        present = self.version(CHAMPION) or NOBODY
        where = f"MLflow, registered model {self.name}, version {version}"
        if present == version:
            raise UserError("is the champion already", where=where)
        failed = [
            f"{name.removeprefix(PROMOTION)} ({value})"
            for name, value in tags.items()
            if name.startswith(PROMOTION) and value.startswith("fail")
        ]
        if failed or not tags.get(VERDICT, "").startswith(PASSED):
            raise UserError(
                f"failed: {'; '.join(failed)}" if failed else "no run has checked it",
                where=where,
                remedy="run the pipeline with it; or set the alias `champion` in MLflow by hand",
            )
        if tags.get(AGAINST) != present:
            raise UserError(
                f"was checked against {tags.get(AGAINST)}, the champion now is {present}",
                where=where,
                remedy="run the pipeline again: it checks every model against the champion",
            )
        self.crown(version, "a user promoted it after it had passed every check")
        return present

    def record(self, version: str, checks: Mapping[str, str], verdict: str, against: str) -> None:
        """Record the checks of a promotion in the version's tags; nothing where they stand so."""
        tags = {f"{PROMOTION}{name.replace(' ', '_')}": said for name, said in checks.items()}
        tags |= {VERDICT: verdict, AGAINST: against}
        known = {
            name: value
            for name, value in self.client.get_model_version(self.name, version).tags.items()
            if name.startswith(PROMOTION) and name != f"{PROMOTION}date"
        }
        if known == tags:
            return
        for name in known.keys() - tags.keys():
            self.client.delete_model_version_tag(self.name, version, name)
        for name, value in (tags | {f"{PROMOTION}date": _now()}).items():
            self.client.set_model_version_tag(self.name, version, name, value)

    def _history(self) -> list[str]:
        """Earlier champions that are still there."""
        tags = self.client.get_registered_model(self.name).tags
        return [number for number in tags.get(HISTORY, "").split() if self._is_there(number)]

    def _is_there(self, number: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self.client.get_model_version(self.name, number)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True

    def _remember(self, history: list[str]) -> None:
        self.client.set_registered_model_tag(self.name, HISTORY, " ".join(history))

    def _clear(self, version: str) -> None:
        """Take away what a version says of being champion."""
        for tag in self.client.get_model_version(self.name, version).tags:
            if tag.startswith((f"{CHAMPION}.", PROMOTION)):
                self.client.delete_model_version_tag(self.name, version, tag)

    def _describe(self, version: str, rule: str) -> None:
        self.client.set_registered_model_tag(self.name, f"{CHAMPION}.rule", rule)
        self.client.set_model_version_tag(self.name, version, f"{CHAMPION}.rule", rule)
        self.client.set_model_version_tag(self.name, version, f"{CHAMPION}.since", _now())


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
