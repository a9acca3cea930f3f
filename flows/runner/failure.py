"""How stages and a whole run fail."""

from __future__ import annotations

USER_ERROR = 2


class StageFailure(Exception):
    """A stage ended with an error.

    Attributes:
        stage: its name.
        status: exit status of its command: 2 when the user can mend the cause.
        cause: its last message.
    """

    def __init__(self, stage: str, status: int, cause: str) -> None:
        self.stage, self.status, self.cause = stage, status, cause
        super().__init__(f"{stage} failed with exit status {status}: {cause}")


class PipelineFailure(Exception):
    """Some steps failed; those that do not depend on them have run."""

    def __init__(self, failures: list[StageFailure], not_run: list[str]) -> None:
        self.failures, self.not_run = failures, not_run
        lines = [
            f"{failure.stage} failed with exit status {failure.status}; its message is above"
            for failure in failures
        ]
        if not_run:
            lines.append(f"not run because of that: {', '.join(not_run)}")
        super().__init__("\n".join(lines))

    @property
    def status(self) -> int:
        """2 when the user can mend every failure."""
        user_errors = all(failure.status == USER_ERROR for failure in self.failures)
        return USER_ERROR if user_errors else 1
