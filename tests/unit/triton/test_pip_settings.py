"""Which of the user's settings of pip the private environment obeys."""

import os
import sys
from pathlib import Path

import pytest

from dfer_deploy.triton.pip_settings import network_settings, pip_variables


def test_the_places_of_packages_are_kept_and_everything_else_is_dropped() -> None:
    settings = network_settings(
        [
            "global.index-url='https://index.example/simple'",
            "global.constraint='/etc/constraints.txt'",
            "global.extra-index-url='file:///a\\nfile:///b'",
            "install.index-url='https://install.example/simple'",
            "install.user='true'",
            ":env:.cert='/etc/cert.pem'",
            ":env:.target='/elsewhere'",
            "list.format='json'",
            "nonsense",
        ]
    )
    assert settings == {
        "PIP_INDEX_URL": "https://install.example/simple",
        "PIP_EXTRA_INDEX_URL": "file:///a file:///b",
        "PIP_CERT": "/etc/cert.pem",
    }


def test_pip_is_asked_for_its_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nretries = 7\nconstraint = /nowhere/constraints.txt\n[install]\nuser = true\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    variables = pip_variables(sys.executable)
    assert variables["PIP_RETRIES"] == "7"
    assert variables["PIP_CONFIG_FILE"] == os.devnull
    assert variables["PIP_USER"] == "0"
    assert not {"PIP_CONSTRAINT", "PIP_TARGET"} & set(variables)
