"""Results of earlier verifications whose clips count too. Each fold of a cross-validation has its own bundle."""

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
    """An earlier verification whose clips count again.

    Attributes:
        path: path of its file.
        result: its result.
    """

    path: Path
    result: VerificationResult

    @property
    def failure(self) -> str | None:
        """One sentence with the file and its first failure; None if it did not fail."""
        failures = self.result.failures
        return f"the pooled verification {self.path} failed: {failures[0]}" if failures else None

    def check_alike(self, limits: Limits, target: str) -> None:
        """Refuse an earlier verification that cannot support one with these limits and this target.

        Raises:
            DferDeployError: its precision or target is different, or its limits are wider.
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
    """Read a result that ``verify --json`` wrote.

    Raises:
        DferDeployError: the file is missing or too large, or is not a result of a supported format.
    """
    values = read_json(path, "verify")
    try:
        return EarlierVerification(path, VerificationResult.from_dict(values))
    except DferDeployError as error:
        raise ResultError(
            f"{path} is not a result of this version's verify ({error}); verify that fold again"
        ) from error
