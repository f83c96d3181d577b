"""The options of an export. They need no PyTorch, so that Python can build them where only the export is missing."""

from __future__ import annotations

from dataclasses import dataclass

from dfer_deploy.bundles.bundle import ServingOptions, Target, check_model_name
from dfer_deploy.clips.timed import check_interval
from dfer_deploy.plain_data import check_fields
from dfer_deploy.specs import Precision, PromptPosition, require


@dataclass(frozen=True)
class ExportOptions:
    """The options of an export.

    Attributes:
        target: the server for which the model repository is made; None for tensorrt if there is a GPU, else embedded.
        serving: how the server runs the models; None for the defaults of the target.
        precision: precision of the matrix products; None for fp16 if the target is tensorrt or ``keep_fp32`` is given,
            else fp32.
        name: prefix of the Triton model names.
        prompt_position: position of the contexts, for reference checkpoints; None for the default of the released code.
        class_names: class names, for reference checkpoints; None for the released names.
        keep_fp32: blocks whose matrix products stay fp32 in an fp16 export; see ``dfer_deploy.bundles.blocks``.
        frame_interval_s: seconds between the 16 frames of a training clip, 0.01 to 60, which reference checkpoints do
            not contain; None for the checkpoint's value.
    """

    target: Target | None = None
    serving: ServingOptions | None = None
    precision: Precision | None = None
    name: str = "dfer"
    prompt_position: PromptPosition | None = None
    class_names: tuple[str, ...] | None = None
    keep_fp32: tuple[str, ...] = ()
    frame_interval_s: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_model_name(self.name)
        if self.frame_interval_s is not None:
            check_interval(self.frame_interval_s)
        require(
            not self.keep_fp32 or self.precision != "fp32",
            f"{', '.join(self.keep_fp32)} shall stay fp32, but in the precision fp32 all blocks do; omit one",
        )
