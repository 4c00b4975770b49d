"""Making our models from values that are right already."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel

M = TypeVar("M", bound=BaseModel)

_defaults: dict[type[BaseModel], dict[str, Any]] = {}


def made(model: type[M], **values: Any) -> M:
    """A model without validation, an order of magnitude faster than ``model_construct``: for values that our own code
    made, on the path of every task. The model's defaults must be immutable, as those of frozen models are."""
    defaults = _defaults.get(model)
    if defaults is None:
        defaults = _defaults[model] = {
            name: field.default for name, field in model.model_fields.items() if not field.is_required()
        }
    instance = model.__new__(model)
    _set(instance, "__dict__", {**defaults, **values})
    _set(instance, "__pydantic_fields_set__", set(values))
    _set(instance, "__pydantic_extra__", None)
    _set(instance, "__pydantic_private__", None)
    return instance


def changed(model: M, changes: dict[str, Any]) -> M:
    """A copy of a model in which some fields have other values, not validated again."""
    copy = model.__new__(type(model))
    _set(copy, "__dict__", {**model.__dict__, **changes})
    _set(copy, "__pydantic_fields_set__", model.__pydantic_fields_set__ | changes.keys())
    _set(copy, "__pydantic_extra__", None)
    _set(copy, "__pydantic_private__", None)
    return copy


_set = object.__setattr__
