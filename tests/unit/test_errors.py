"""Programs tell errors by class and code: each class has a code of its own, and the tree in the docstring is true."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfer_deploy import errors
from dfer_deploy.errors import DferDeployError, MissingExtraError, missing_package


def tree(error: type[DferDeployError]) -> list[type[DferDeployError]]:
    return [error, *(below for child in error.__subclasses__() for below in tree(child))]


PUBLIC = [error for error in tree(DferDeployError) if error.__module__ == errors.__name__]


def test_every_class_has_a_code_of_its_own() -> None:
    codes = [vars(error).get("code") for error in PUBLIC]
    assert None not in codes
    assert len(set(codes)) == len(PUBLIC)


@pytest.mark.parametrize("error", PUBLIC)
def test_the_tree_names_every_class_with_its_code(error: type[DferDeployError]) -> None:
    (line,) = [line for line in (errors.__doc__ or "").splitlines() if error.__name__ in line.split()[:4]]
    assert error.code in line.split()


def test_a_missing_package_without_an_extra_is_a_bug() -> None:
    assert missing_package(ModuleNotFoundError(name="torch.nn"), "this").code == MissingExtraError.code
    with pytest.raises(ModuleNotFoundError):
        missing_package(ModuleNotFoundError(name="colour"), "this")


def test_a_checkout_is_told_to_install_itself_and_an_installed_package_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "a checkout" / "dfer_deploy" / "errors.py"))
    assert errors.install_command("cpu") == "pip install 'dfer-deploy[cpu]'"
    (tmp_path / "a checkout").mkdir()
    (tmp_path / "a checkout" / "pyproject.toml").touch()
    assert errors.install_command("cpu") == f"pip install -e '{tmp_path / 'a checkout'}[cpu]'"
