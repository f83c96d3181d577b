"""The log of a server: where it is, how many are kept, and what it says about the server's end."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from dfer_deploy.errors import ServerError
from dfer_deploy.triton.cache import cache_folder

KEPT_LOGS = 10
"""Limits the logs that crashed servers leave in the cache folder."""

_NO_GPU = re.compile(r"cuda|nvml|dcgm", re.IGNORECASE)
"""Matches errors that a server logs on every machine without a GPU."""


def opened_log(given: Path | None) -> Path:
    """The path of the log, which is created to check that it can be written."""
    folder = cache_folder() / "logs" if given is None else given.absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if given is not None:
            given.open("ab").close()
            return given.absolute()
        _remove_old_logs(folder)
        handle, name = tempfile.mkstemp(prefix=f"tritonserver-{os.getpid()}-", suffix=".log", dir=folder)
    except OSError as error:
        raise ServerError(
            f"cannot write the server's log {given or folder}: {error.strerror or error}; choose another place"
        ) from error
    os.close(handle)
    return Path(name)


def _remove_old_logs(folder: Path) -> None:
    """Remove the logs that crashes left, except the latest. A log's name has the process that started the server."""
    left = [path for path in folder.glob("tritonserver-*.log") if not _is_of_another(path.name.split("-")[1])]
    for path in sorted(left, key=lambda path: path.stat().st_mtime)[:-KEPT_LOGS]:
        path.unlink(missing_ok=True)


def _is_of_another(process: str) -> bool:
    """Whether another process still runs, whose server may write into the log."""
    return process.isdecimal() and int(process) != os.getpid() and Path(f"/proc/{process}").exists()


def reason_in_words(reason: str) -> str:
    """Describe the reason that the guard reports for a server's end."""
    kind, _, detail = reason.partition(" ")
    if kind == "server":
        status = int(detail)
        how = f"was killed by signal {-status}" if status < 0 else f"ended with exit code {status}"
        return f"tritonserver {how}"
    if kind == "stub":
        return f"the process of the model {Path(detail).parent.parent.name} died, so that its server was ended"
    if kind == "still":
        return (
            f"the process of the model {Path(detail).parent.parent.name} stood still, and its server was ended before "
            "it could mix up answers"
        )
    if kind == "paused":
        return f"this machine was paused for {detail} s, and the server was ended before it could mix up answers"
    return "the process that guards tritonserver was killed"


def meaning_of_log(log: Path | None, *, has_gpu: bool) -> str:
    """The reason of a server's end, from its log: a model that failed to load, else the last error, else nothing."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log is not None and log.exists() else []
    failed = [found for line in lines if (found := re.search(r'"failed to load (\'.+?\' version \d+): (.+)', line))]
    if failed:
        # A model's exception includes its traceback after "\n\nAt:", with escaped line breaks.
        message = failed[0][2].split(r"\n")[0].strip('" ')
        return f"failed to load {failed[0][1]} ({message.removeprefix('Internal: ')})"
    errors = [line for line in lines if re.match(r"E\d{4} |error:|docker: ", line)]
    errors = [line for line in errors if has_gpu or not _NO_GPU.search(line)]
    last = errors[-1] if errors else ""
    return re.sub(r"^[A-Z]\d{4} \S+ \d+ \S+\] ", "", last).removeprefix("error:").strip().strip('"')
