"""The output files of ``predict``, checked before the work starts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfer_deploy.errors import SettingError
from dfer_deploy.files import refuse_to_replace_input, refuse_to_write_into_bundle

_SUFFIXES = {"timeline": ".png", "crops": ".png", "video": ".mp4"}
"""The required suffixes of pictures and videos."""


@dataclass(frozen=True)
class OutputFiles:
    """The output files of a prediction; None for a file that is not wanted.

    Attributes:
        json: JSON file of all windows.
        csv: CSV file of all windows.
        timeline: picture of the probabilities over time, one for each input.
        crops: picture of what the model saw, one for each input.
        video: annotated video with boxes and answers, one for each input.
    """

    json: Path | None
    csv: Path | None
    timeline: Path | None
    crops: Path | None
    video: Path | None

    @property
    def drawn(self) -> bool:
        """Whether an output is drawn that needs times."""
        return bool(self.timeline or self.crops or self.video)

    def check(self, inputs: Sequence[Path], bundle: Path | None) -> None:
        """Refuse output names that would overwrite something or cannot be written, before the work starts.

        Raises:
            DferDeployError: a file would replace another output or an input, or lies in the bundle; its suffix does not
                fit its content; its folder does not exist or cannot be written.
        """
        names = ("json", "csv", "timeline", "crops", "video")
        taken: dict[str, str] = {}
        for name in names:
            file: Path | None = getattr(self, name)
            if file is None:
                continue
            _check_name(name, file)
            several = name not in ("json", "csv") and len(inputs) > 1
            for path in [one_of(file, inputs, number) for number in range(len(inputs))] if several else [file]:
                refuse_to_replace_input(path, inputs)
                if bundle:
                    refuse_to_write_into_bundle(path, bundle)
                place = os.path.realpath(path)
                if place in taken:
                    raise SettingError(f"--{name} would replace {taken[place]}; choose another name")
                taken[place] = f"what --{name} writes"


def _check_name(name: str, file: Path) -> None:
    suffix, folder = _SUFFIXES.get(name), file.absolute().parent
    if file == Path("-"):
        raise SettingError(f"--{name} - would be a file of that name, not the standard output; give another name")
    if suffix and file.suffix.lower() != suffix:
        raise SettingError(f"--{name} {file}: expected a name that ends with {suffix}, which is what is written")
    if not folder.is_dir():
        raise SettingError(f"--{name} {file}: the folder {file.parent} does not exist; make it first")
    if file.exists() and not file.is_file():
        raise SettingError(f"--{name} {file} is not a regular file, so it is not replaced; give the name of a file")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SettingError(
            f"--{name} {file}: the folder {file.parent} cannot be written ({error.strerror or error}); choose another "
            "place"
        ) from error


def one_of(file: Path, inputs: Sequence[Path], number: int) -> Path:
    """Return the output file for one input: ``file`` for a single input, else one with a number and a name."""
    if len(inputs) == 1:
        return file
    return file.with_name(f"{file.stem}-{number + 1}-{inputs[number].stem}{file.suffix}")
