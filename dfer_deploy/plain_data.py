"""Conversion of frozen dataclasses to plain data, for JSON, TOML and ``weights_only`` pickles, and back with checks.

``check_fields`` and ``checked_arguments`` make the same checks of what Python code passes.

This module is a part of ``build_engines.py`` in a bundle, which has the standard library only. NumPy is therefore
imported only for arrays.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from dfer_deploy.errors import SettingError

S = TypeVar("S")
F = TypeVar("F", bound=Callable[..., Any])

_MAX_SHOWN = 200
"""Characters of a value in a message."""


def spec_from_dict(cls: type[S], values: Any, where: str = "") -> S:
    """Build a frozen dataclass from plain data, and check names and types at every level.

    Args:
        cls: the dataclass to build.
        values: values by field name, as JSON or TOML contains them.
        where: dotted path of ``values``, for messages.

    Raises:
        DferDeployError: a key is unknown (the nearest name is suggested), missing, or has the wrong type.
    """
    label = where or cls.__name__
    if not isinstance(values, dict):
        raise SettingError(f"{label} is {values!r}, expected a table of settings")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(fields)}"
            raise SettingError(f"unknown key {str(key)!r} in {label}; {hint}")
    arguments = {}
    for name, field in fields.items():
        path = f"{where}.{name}" if where else name
        if name in values:
            arguments[name] = _value(hints[name], values[name], path)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SettingError(f"{path} is missing in {label}; add it")
    return cls(**arguments)


def _value(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return spec_from_dict(typing.cast(type[Any], hint), value, path)
    origin = typing.get_origin(hint)
    if origin is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise SettingError(f"{path} is {_shortened(value)}, expected one of {', '.join(map(str, choices))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise SettingError(f"{path} is {_shortened(value)}, expected a list")
        element, *rest = typing.get_args(hint)
        if rest and rest[0] is not Ellipsis:
            elements = typing.get_args(hint)
            if len(value) != len(elements):
                raise SettingError(f"{path} is {_shortened(value)}, expected {len(elements)} values")
            return tuple(_value(e, v, f"{path}[{i}]") for i, (e, v) in enumerate(zip(elements, value, strict=True)))
        return tuple(_value(element, item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in typing.get_args(hint):
            return None
        (inner,) = [choice for choice in typing.get_args(hint) if choice is not type(None)]
        return _value(inner, value, path)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise SettingError(f"{path} is an integer of more than 64 bits, expected a smaller one")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is dict:
        if not isinstance(value, dict):
            raise SettingError(f"{path} is {_shortened(value)}, expected a table")
        of_keys, of_values = typing.get_args(hint)
        return {
            _value(of_keys, key, f"a key of {path}"): _value(of_values, item, f"{path}.{key}")
            for key, item in value.items()
        }
    if hint is Any:
        return value
    if getattr(origin, "__name__", "") == "ndarray":
        return _integers(value, path)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise SettingError(f"{path} is {_shortened(value)}, expected {hint.__name__}")
    return value


def _integers(value: Any, path: str) -> Any:
    """Return a list of integers as an array, int64 [N]."""
    import numpy as np  # only results hold arrays, and this module is needed without NumPy too

    if not isinstance(value, list | tuple) or any(type(item) is not int for item in value):
        raise SettingError(f"{path} is {str(value)[:80]}, expected a list of integers")
    try:
        return np.array(value, dtype=np.int64)
    except OverflowError as error:
        raise SettingError(f"{path} has an integer of more than 64 bits, expected smaller ones") from error


def check_fields(instance: Any) -> None:
    """Check the types of a dataclass's fields, for its ``__post_init__``: Python does not check what a caller passes.

    Raises:
        SettingError: a value is not of its field's type.
    """
    hints = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        _check_type(field.name, getattr(instance, field.name), hints[field.name])


def checked_arguments(function: F) -> F:
    """Decorate a public function, so that it refuses unknown arguments, and arguments of other types than annotated.

    Raises:
        SettingError: in a call of the decorated function.
    """
    signature, name_of_call = inspect.signature(function), function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        hints = typing.get_type_hints(function)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            known = ", ".join(name for name in signature.parameters if name != "self")
            raise SettingError(f"{name_of_call}: {error}; its arguments are {known}") from error
        for name, value in bound.arguments.items():
            _check_type(name, value, hints.get(name, Any))
        return function(*args, **kwargs)

    return typing.cast(F, checked)


def _check_type(name: str, value: Any, hint: Any) -> None:
    if not _is_of_type(value, hint):
        raise SettingError(f"{name} is {_shortened(value)}, expected {_type_name(hint)}")


def _is_of_type(value: Any, hint: Any) -> bool:
    """Compare a value with an annotation. A list passes for a tuple, and NumPy's numbers pass for Python's."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_is_of_type(value, choice) for choice in choices)
    if origin is Literal:
        return any(isinstance(value, type(choice)) and value == choice for choice in choices)
    if hint in (int, float):
        return isinstance(value, numbers.Integral if hint is int else numbers.Real) and not isinstance(value, bool)
    if getattr(hint, "_is_protocol", False):
        return all(hasattr(value, name) for name in vars(hint) if not name.startswith("_"))
    if origin is None:
        return isinstance(value, hint)
    if isinstance(value, str) or not isinstance(value, (list, tuple) if origin is tuple else origin):
        return False
    if isinstance(value, Mapping):
        return all(_is_of_type(item, hint) for pair in value.items() for item, hint in zip(pair, choices, strict=True))
    return origin not in (tuple, Sequence) or all(_is_of_type(item, choices[0]) for item in value)


def _type_name(hint: Any) -> str:
    """Return an annotation as a message names it, such as ``Path, str or None``."""
    *first, last = _alternatives(hint)
    return f"{', '.join(first)} or {last}" if first else last


def _alternatives(hint: Any) -> list[str]:
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return [repr(choice) for choice in choices]
    if origin in (typing.Union, types.UnionType):
        return [name for choice in choices for name in _alternatives(choice)]
    if origin is not None:
        inner = ", ".join("..." if choice is ... else _type_name(choice) for choice in choices)
        return [f"{origin.__name__}[{inner}]"]
    return ["None" if hint is types.NoneType else getattr(hint, "__name__", str(hint))]


def _shortened(value: Any) -> str:
    """Return a value for a message: files may hold megabytes of it."""
    text = repr(value[:_MAX_SHOWN] if isinstance(value, str) else value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def plain(value: Any) -> Any:
    """Convert tuples at every level to lists, for JSON, TOML and ``weights_only``."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def json_values(value: Any) -> Any:
    """Convert a result to JSON values: dataclasses to tables, arrays to lists, numbers that are not finite to None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: json_values(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(item) for item in value]
    if hasattr(value, "tolist"):  # an array or one of its numbers
        return json_values(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def result_from_json(cls: type[S], values: Any, where: str = "") -> S:
    """Build a result's dataclass from the output of ``json_values``.

    Unknown keys are ignored, so that a later version may add keys. Null in the place of a number becomes infinity.

    Raises:
        DferDeployError: a key is missing, or a value has the wrong type or is not valid.
    """
    return spec_from_dict(cls, _known(cls, values), where)


def _known(hint: Any, value: Any) -> Any:
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _known(next(c for c in choices if c is not types.NoneType), value)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        hints = typing.get_type_hints(hint)
        return {key: _known(hints[key], item) for key, item in value.items() if key in hints}
    if origin is tuple and isinstance(value, list | tuple):
        return [_known(choices[0], item) for item in value]
    if origin is dict and isinstance(value, Mapping):
        return {key: _known(choices[1], item) for key, item in value.items()}
    return math.inf if hint is float and value is None else value
