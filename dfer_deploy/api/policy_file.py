"""The policy file: limits that a release must keep, as TOML that can be kept under version control."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from dfer_deploy.errors import ResultError
from dfer_deploy.measurement.bench_policy import BenchPolicy
from dfer_deploy.plain_data import spec_from_dict
from dfer_deploy.specs import require
from dfer_deploy.verification.verify_policy import VerifyPolicy

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MAX_BYTES = 1 << 20
"""Largest policy file. A policy has a few hundred bytes, so a larger file is a mistake."""


@dataclass(frozen=True)
class Policy:
    """The limits of ``verify`` and ``bench``. A missing table adds nothing to the default limits."""

    verify: VerifyPolicy = VerifyPolicy()
    bench: BenchPolicy = BenchPolicy()


def policy_from_toml(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        DferDeployError: the file is missing or not TOML, or a limit is unknown, has a wrong type or is out of range.
    """
    try:
        require(path.stat().st_size <= _MAX_BYTES, f"{path} has over {_MAX_BYTES} bytes, which no policy has")
        return spec_from_dict(Policy, tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ResultError(f"{path} cannot be read ({error.strerror}); expected a policy in TOML") from error
    except (ValueError, RecursionError) as error:  # the errors of TOML and Unicode, and of tables nested too deeply
        raise ResultError(f"{path} is not a TOML file ({error}); correct it") from error
