"""The instructions for building a bundle's engines: ``build_engines.json``. Needs only the standard library.

``export`` and ``configure`` write the file; ``build`` and ``build_engines.py`` read it. This module is a part of
``build_engines.py``.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from dfer_deploy.bundles.engine_records import Profile
from dfer_deploy.errors import ConfigurationError, DferDeployError, EngineError
from dfer_deploy.plain_data import spec_from_dict

BUILDS_NAME = "build_engines.json"
BUILDS_FORMAT = "dfer-deploy-engine-builds/1"
MAX_BUILDS_BYTES = 1 << 20

PRECISIONS = ("fp32", "fp16")
PRODUCT_TYPES = ("FLOAT", "HALF")
"""The types of matrix products, by TensorRT's names."""


@dataclass(frozen=True)
class EngineBuild:
    """The instructions for building the engine of one graph.

    Attributes:
        onnx_sha256: SHA-256 of the graph's ONNX file.
        profile: shapes of each dynamic input, by its name.
        precision: precision that the graph is expected to have, ``fp32`` or ``fp16``.
        matrix_products: type of every matrix product, in the order of the computation, if some blocks of an fp16 graph
            stay fp32; otherwise None.

    Raises:
        EngineError: a precision, a type or a profile is not valid.
    """

    onnx_sha256: str
    profile: dict[str, Profile]
    precision: str
    matrix_products: tuple[str, ...] | None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise EngineError(f"the precision is {self.precision!r}, expected one of {', '.join(PRECISIONS)}")
        unknown = sorted(set(self.matrix_products or ()) - set(PRODUCT_TYPES))
        if unknown:
            raise EngineError(f"a matrix product has the type {unknown[0]!r}, expected {' or '.join(PRODUCT_TYPES)}")
        for name, shapes in self.profile.items():
            ranks = {len(shapes.min), len(shapes.opt), len(shapes.max)}
            rising = all(1 <= a <= b <= c for a, b, c in zip(shapes.min, shapes.opt, shapes.max, strict=False))
            if len(ranks) != 1 or 0 in ranks or not rising:
                raise EngineError(
                    f"the profile of {name!r} is {list(shapes.min)}, {list(shapes.opt)}, {list(shapes.max)}, expected "
                    "three shapes of one length, none smaller than the one before it"
                )

    def with_usual_batch(self, clips: int) -> EngineBuild:
        """Copy the instructions with another usual number of clips.

        Raises:
            EngineError: the number is not between 1 and the largest batch.
        """
        profile = {}
        for name, shapes in self.profile.items():
            if not 1 <= clips <= shapes.max[0]:
                raise EngineError(
                    f"the usual batch has {clips} clips, expected 1 to {shapes.max[0]}, the bundle's largest"
                )
            profile[name] = replace(shapes, opt=(clips, *shapes.opt[1:]))
        return replace(self, profile=profile)


@dataclass(frozen=True)
class EngineBuilds:
    """The instructions for building the engines of a bundle.

    Attributes:
        version: version folder of the plans in the model repository, at least 1.
        graphs: instructions by the graph's name, which is that of its Triton model.

    Raises:
        EngineError: the version or a name is not valid.
    """

    version: int
    graphs: dict[str, EngineBuild]

    def __post_init__(self) -> None:
        if self.version < 1:
            raise EngineError(f"the version is {self.version}, expected at least 1")
        for name in self.graphs:
            if re.fullmatch(r"[A-Za-z0-9_-]{1,128}", name) is None:
                raise EngineError(f"a graph is called {name!r}, expected letters, digits, _ and -")


def onnx_path(graph: str) -> str:
    """Build the path of a graph's ONNX file in a bundle."""
    return f"onnx/{graph}.onnx"


def plan_path(graph: str, version: int) -> str:
    """Build the path of a graph's plan in a bundle, where Triton looks for it."""
    return f"model_repository/{graph}/{version}/model.plan"


def read_engine_builds(bundle: Path) -> EngineBuilds:
    """Read and check a bundle's ``build_engines.json``. The file is not trusted.

    Raises:
        EngineError: the file does not exist.
        ConfigurationError: the file is damaged, or its format is another.
    """
    path = bundle / BUILDS_NAME
    if not path.is_file():
        raise EngineError(f"{bundle} has no {BUILDS_NAME}, expected a bundle of the target 'tensorrt'")
    try:
        if path.stat().st_size > MAX_BUILDS_BYTES:
            raise ValueError(f"it has over {MAX_BUILDS_BYTES} bytes")
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != BUILDS_FORMAT:
            raise ValueError(f"its format is not {BUILDS_FORMAT!r}")
        return spec_from_dict(EngineBuilds, values)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError, DferDeployError) as error:
        raise ConfigurationError(
            f"{path} is damaged ({error}); write it again with: dfer-deploy configure {shlex.quote(str(bundle))}"
        ) from error
