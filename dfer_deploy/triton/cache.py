"""The cache folder, which holds the private environment, packed weights and the logs of servers that crashed."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from dfer_deploy.errors import ServerError

CACHE_VARIABLE = "DFER_DEPLOY_CACHE"


def cache_folder() -> Path:
    """Find the cache folder: the variable DFER_DEPLOY_CACHE, or ``dfer-deploy`` in the user's cache folder.

    Raises:
        ServerError: the variable is not set and the user has no home folder.
    """
    try:
        folder = os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("dfer-deploy")
    except RuntimeError:
        folder = "~"
    if folder.startswith("~"):  # what older platformdirs return if neither HOME nor the list of users has a folder
        raise ServerError(
            f"this user has no home folder for the cache (HOME is not set); set {CACHE_VARIABLE} to a folder that can "
            "be written"
        )
    return Path(folder).absolute()
