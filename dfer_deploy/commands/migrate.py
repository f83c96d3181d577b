"""``dfer-deploy migrate``"""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from dfer_deploy.api.migrate_bundle import migrate_bundle
from dfer_deploy.commands.options import bundle_argument, json_option
from dfer_deploy.console import stdout, warn
from dfer_deploy.files import write_json


@click.command()
@bundle_argument
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the new bundle.")
@json_option
def migrate(bundle: Path, output: Path, json_file: Path | None) -> None:
    """Write BUNDLE, which an older version exported, in today's format. BUNDLE itself is left unchanged.

    The weights stay the same and the checkpoint is not needed. Verify the new bundle as after an export.
    """
    result = migrate_bundle(bundle, output)
    new = result.bundle
    stdout.print(f"{new.path}: written from {result.old_format} as {new.manifest.format}", markup=False)
    for what in result.left_out:
        warn(f"{what}: left in {bundle}, not in the new bundle")
    typed = shlex.quote(str(new.path))
    stdout.print("next:")
    for line in (
        *([f"build {typed}"] if new.manifest.target == "tensorrt" else []),
        f"verify {typed} --checkpoint CKPT --data LIST",
        f"serve {typed}",
    ):
        stdout.print(f"  dfer-deploy {line}", markup=False)
    if json_file:
        write_json(json_file, result.to_dict())
