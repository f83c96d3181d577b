"""The file of limits that a release must keep, a TOML file that can lie under version control."""

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


@dataclass(frozen=True)
class Policy:
    """Both commands' limits; a missing table limits nothing beyond the defaults."""

    verify: VerifyPolicy = VerifyPolicy()
    bench: BenchPolicy = BenchPolicy()


def policy_from_toml(path: Path) -> Policy:
    """Read a policy.

    Raises:
        DferDeployError: the file is missing, no TOML, or a limit is unknown, has the wrong type or cannot be.
    """
    try:
        require(path.stat().st_size <= _MAX_BYTES, f"{path} has over {_MAX_BYTES} bytes, which no policy has")
        return spec_from_dict(Policy, tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ResultError(f"{path} cannot be read ({error.strerror}); expected a policy in TOML") from error
    except (ValueError, RecursionError) as error:  # TOML's own and Unicode's errors; tables in tables in tables
        raise ResultError(f"{path} is not a TOML file ({error}); correct it") from error
