"""Results of earlier verifications whose clips count too: the folds of a cross-validation have a bundle each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dfer_deploy.errors import DferDeployError, ResultError
from dfer_deploy.files import read_json
from dfer_deploy.specs import require
from dfer_deploy.verification.limits import Limits
from dfer_deploy.verification.verification_result import VerificationResult


@dataclass(frozen=True)
class EarlierVerification:
    """A verification whose clips count again.

    Attributes:
        path: of its file.
        result: what it found.
    """

    path: Path
    result: VerificationResult

    @property
    def failure(self) -> str | None:
        """Which file failed and what was first, in one sentence; None where it did not fail."""
        failures = self.result.failures
        return f"the pooled verification {self.path} failed: {failures[0]}" if failures else None

    def check_alike(self, limits: Limits, target: str) -> None:
        """Refuse what proves nothing for a verification with these limits of a bundle for this target.

        Raises:
            DferDeployError: it has another precision or target, or it accepted more.
        """
        its_limits, its_target = self.result.limits, self.result.provenance.target
        for what, its, ours in (("precision", its_limits.precision, limits.precision), ("target", its_target, target)):
            require(
                its == ours,
                f"the pooled verification {self.path} is of the {what} {its}, this one of {ours}; pool folds that are "
                "served alike",
            )
        for name, most in vars(limits).items():
            accepted = getattr(its_limits, name)
            require(
                name == "precision" or accepted <= most,
                f"the pooled verification {self.path} accepted {name} up to {accepted}, this one up to {most}; verify "
                "that fold again with the same limits",
            )


def earlier_from_json(path: Path) -> EarlierVerification:
    """Read what ``verify --json`` wrote.

    Raises:
        DferDeployError: the file is missing, too large, or not a result of this version's ``verify``.
    """
    values = read_json(path, "verify")
    try:
        return EarlierVerification(path, VerificationResult.from_dict(values))
    except DferDeployError as error:
        raise ResultError(
            f"{path} is not a result of this version's verify ({error}); verify that fold again"
        ) from error
