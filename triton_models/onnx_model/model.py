"""A Triton Python-backend model that runs the ``model.onnx`` beside it with onnxruntime.

It serves the graphs of the target ``embedded``: the image encoder, the temporal head and the window of a stream. It
runs in a process of the private environment (NumPy 1.26, without dfer_deploy). It therefore imports only NumPy,
onnxruntime, Triton's own module, and ``model_requests.py``, ``receipts.py`` and ``cgroups.py``, which are beside this
file.

The properties of the tensors come from Triton's model configuration: the inputs' names, dtypes and dims (without the
batch; −1 is T, the number of frames), the outputs' names, and these parameters. The last output is the receipt.

    max_frames         largest T for which the model has temporal positions
    intra_op_threads   number of threads of one execution; 0 is one for every core
    clips_per_run      number of clips of max_frames frames in one run of onnxruntime; shorter clips are run together
                       up to as many frames; 0 is max_batch_size
    spin_us            time that a waiting thread spins before it sleeps, in microseconds
    must_be_finite     "1" refuses requests with NaN or infinity; "0" passes them to the graph

A large graph is opened as a copy that onnxruntime has optimised and packed for this processor. The copy is in the cache
folder (the variable DFER_DEPLOY_CACHE, or ``dfer-deploy`` in the user's cache folder), and all processes that serve it
map the same memory. The first process makes it. If that fails, the graph itself is opened, with the same answers.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import triton_python_backend_utils as pb_utils
from cgroups import usable_cores
from model_requests import RequestError, check_clips, input_array, refusal
from receipts import RECEIPT, receipt

Array = npt.NDArray[Any]

_NUMPY_DTYPES = {"TYPE_UINT8": np.uint8, "TYPE_INT32": np.int32, "TYPE_FP32": np.float32}

PACKED_FROM_BYTES = 32 << 20
"""The smallest size of a graph, in bytes, for which a packed copy is made."""

PACKED_COPIES = 3
"""Limits the packed copies to those that were opened last. Each takes about twice the bytes of its graph."""

_RECORD = "complete.json"


@dataclass(frozen=True)
class Input:
    """An input of the graph. ``dims`` are its dimensions without the batch; −1 is T."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int, ...]

    def __str__(self) -> str:
        return f"[B, {', '.join('T' if size == -1 else str(size) for size in self.dims)}] of {self.dtype}"


class TritonPythonModel:
    """One instance of the model; Triton calls ``initialize`` once and ``execute`` with every batch of requests."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph. After an exception, the model is not loaded, and Triton logs the message."""
        config = json.loads(args["model_config"])
        self._inputs = [
            Input(entry["name"], np.dtype(_NUMPY_DTYPES[entry["data_type"]]), tuple(map(int, entry["dims"])))
            for entry in config["input"]
        ]
        self._output_names: list[str] = [output["name"] for output in config["output"] if output["name"] != RECEIPT]
        self._max_frames = int(config["parameters"]["max_frames"]["string_value"])
        self._max_batch_size = int(config["max_batch_size"])
        threads = int(config["parameters"]["intra_op_threads"]["string_value"])
        spin_us = int(config["parameters"]["spin_us"]["string_value"])
        self._must_be_finite = config["parameters"]["must_be_finite"]["string_value"] == "1"
        self._clips_per_run = int(config["parameters"]["clips_per_run"]["string_value"]) or self._max_batch_size
        graph = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = _opened(graph, threads, spin_us)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request, in order. A request that cannot be answered gets its own error.

        Args:
            requests: requests with inputs [b, T, …]; T may differ between requests.

        Returns:
            One response for each request.
        """
        responses: list[Any] = [None] * len(requests)
        groups: dict[tuple[int, int], list[tuple[int, list[Array]]]] = {}
        for index, request in enumerate(requests):
            arrays, responses[index] = self._inputs_or_error(request)
            if arrays is not None:
                frames = arrays[0].shape[1]
                # Clips that are run one by one need not be copied into one batch.
                alone = index if self._clips_at_once(frames) == 1 else -1
                groups.setdefault((frames, alone), []).append((index, arrays))
        for group in groups.values():
            for index, response in self._answer(group):
                responses[index] = response
        return responses

    def _inputs_or_error(self, request: Any) -> tuple[list[Array] | None, Any]:
        try:
            arrays = [self._checked(request, expected) for expected in self._inputs]
            if len({len(array) for array in arrays}) > 1:
                raise RequestError(f"the inputs have batches of {[len(array) for array in arrays]}, expected one size")
            return arrays, None
        except Exception as error:
            return None, refusal(error)

    def _checked(self, request: Any, expected: Input) -> Array:
        name = expected.name
        array: Array = input_array(request, name)
        if array.dtype != expected.dtype:
            raise RequestError(f"{name!r} has the dtype {array.dtype}, expected {expected}")
        if array.ndim != 1 + len(expected.dims) or any(
            wanted not in (-1, size) for size, wanted in zip(array.shape[1:], expected.dims, strict=True)
        ):
            raise RequestError(f"{name!r} has the shape {list(array.shape)}, expected {expected}")
        check_clips(name, array, "frames", self._max_frames)
        # Triton may give this memory to another request meanwhile. The receipt and the graph must see the same bytes.
        array = array.copy()
        if self._must_be_finite and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise RequestError(f"{name!r} holds values that are not finite; send finite numbers")
        return array

    def _answer(self, group: list[tuple[int, list[Array]]]) -> list[tuple[int, Any]]:
        """Run requests of equal shape together. If that fails, run each alone, so that only the faulty one fails."""
        requests = [arrays for _, arrays in group]
        try:
            joined = [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in zip(*requests, strict=True)]
            outputs = self._run(joined)
            ends = np.cumsum([len(arrays[0]) for arrays in requests])[:-1]
            parts = zip(*(np.split(output, ends) for output in outputs), strict=True)
            return [(index, self._response(*both)) for (index, _), *both in zip(group, requests, parts, strict=True)]
        except Exception as error:
            if len(group) == 1:
                return [(group[0][0], refusal(error))]
            return [answer for member in group for answer in self._answer([member])]

    def _clips_at_once(self, frames: int) -> int:
        # Live streams send single frames. Running several of them together is faster than one after the other.
        return max(1, self._clips_per_run * self._max_frames // frames)

    def _run(self, batch: list[Array]) -> list[Array]:
        # One request has at most max_batch_size clips. Several can have more together only if Triton's batcher is
        # misconfigured; an error message is better than running out of memory.
        clips, frames = batch[0].shape[:2]
        if clips > self._max_batch_size:
            raise RequestError(f"{clips} clips in one execution, expected at most {self._max_batch_size}")
        size = self._clips_at_once(frames)
        names = [entry.name for entry in self._inputs]
        runs: list[list[Array]] = []
        for start in range(0, clips, size):
            part = (array[start : start + size] for array in batch)
            runs.append(self._session.run(self._output_names, dict(zip(names, part, strict=True))))
        return runs[0] if len(runs) == 1 else [np.concatenate(parts) for parts in zip(*runs, strict=True)]

    def _response(self, inputs: list[Array], outputs: tuple[Array, ...]) -> Any:
        # Slices of a batch are contiguous; Triton copies the bytes into shared memory.
        tensors = [pb_utils.Tensor(name, output) for name, output in zip(self._output_names, outputs, strict=True)]
        tensors.append(pb_utils.Tensor(RECEIPT, receipt([*inputs, *outputs])))
        return pb_utils.InferenceResponse(output_tensors=tensors)


def _opened(graph: Path, threads: int, spin_us: int) -> onnxruntime.InferenceSession:
    """A session of the packed copy, else of the graph itself."""
    options = _session_options(threads, spin_us)
    if graph.stat().st_size >= PACKED_FROM_BYTES:
        try:
            packed = _packed_copy(graph, cache_folder() / "packed")
            # Its nodes are what the optimiser made of the graph; they are run as they are.
            packed_options = _session_options(threads, spin_us)
            packed_options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            return _session(packed / "model.onnx", packed_options)
        except Exception as error:  # a full disk, a folder that cannot be written, or onnxruntime's own exceptions
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            pb_utils.Logger.log_warn(f"no packed copy of {graph}, so every instance holds its own weights ({reason})")
    return _session(graph, options)


def cache_folder() -> Path:
    """Find dfer-deploy's cache folder, as ``dfer_deploy.triton.cache.cache_folder`` does on Linux."""
    given = os.environ.get("DFER_DEPLOY_CACHE")
    return Path(given or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dfer-deploy").absolute()


def _packed_copy(graph: Path, folder: Path) -> Path:
    """The folder of the packed copy of a graph, which is made if it is missing or damaged.

    If several processes need it at the same time, one makes it and the others wait. A copy that is removed while it is
    opened raises an error here; one that is removed later stays mapped.
    """
    copy = folder / _packed_name(_sha256(graph))
    if not _is_complete(copy):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            with contextlib.suppress(OSError):  # a file system without locks; the copy is renamed as a whole
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_complete(copy):
                _make_packed(graph, copy)
                # glibc would keep the memory that was needed for the copy, twice the graph's size.
                with contextlib.suppress(AttributeError):
                    ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # a folder that can only be read
        os.utime(copy)
    return copy


def _packed_name(graph_sha256: str) -> str:
    """A name that changes with the graph and with what packed weights depend on: onnxruntime and the processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    processor = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    environment = json.dumps([onnxruntime.__version__, platform.machine(), processor])
    return f"{graph_sha256[:24]}-{hashlib.sha256(environment.encode()).hexdigest()[:12]}"


def _make_packed(graph: Path, copy: Path) -> None:
    """Source: onnxruntime_session_options_config_keys.h, "session.save_external_prepacked_constant_initializers"."""
    folders = [path for path in copy.parent.iterdir() if path.is_dir()]
    whole = [path for path in folders if path != copy and path.suffix != ".part"]
    kept = sorted(whole, key=lambda path: path.stat().st_mtime)[1 - PACKED_COPIES :]
    for path in set(folders) - set(kept):  # an unfinished part is left by a killed process, which held the lock
        shutil.rmtree(path, ignore_errors=True)
    needed = 3 * graph.stat().st_size
    if shutil.disk_usage(copy.parent).free < needed:  # onnxruntime may not detect a full disk
        raise OSError(f"{copy.parent} has less than {needed / 1e9:.1f} GB free")
    temporary = Path(tempfile.mkdtemp(prefix=f"{copy.name}.", suffix=".part", dir=copy.parent))
    try:
        options = _session_options(0, 0)
        options.log_severity_level = 3  # it would warn that the copy is for this processor only
        options.optimized_model_filepath = str(temporary / "model.onnx")
        for key, value in (
            ("session.optimized_model_external_initializers_file_name", "weights.bin"),
            ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
            ("session.save_external_prepacked_constant_initializers", "1"),
        ):
            options.add_session_config_entry(key, value)
        _session(graph, options)
        names = ("model.onnx", "weights.bin")
        for name in names:
            with (temporary / name).open("rb") as file:
                os.fsync(file.fileno())
        record = {name: _sha256(temporary / name) for name in names}
        (temporary / _RECORD).write_text(json.dumps(record), encoding="utf-8")
        temporary.replace(copy)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_complete(copy: Path) -> bool:
    try:
        record: dict[str, str] = json.loads((copy / _RECORD).read_text(encoding="utf-8"))
        return all(_sha256(copy / name) == record[name] for name in ("model.onnx", "weights.bin"))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _session(path: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _session_options(threads: int, spin_us: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin_us > 0)))
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
    return options
