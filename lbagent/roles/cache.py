"""Roles as plain JSON, so that a handler need not import a YAML library (11 ms) for an unchanged roles.yml.

Fields are stored by name: a new key of roles.yml needs no change here.
"""

from __future__ import annotations

from typing import Any

from lbagent.roles.model import HaproxySettings, Role, Roles, Service, Template

_TEMPLATE = "template"
"""The only key of an object that is a template."""


def serialize_roles(roles: Roles) -> dict[str, Any]:
    """Return roles as JSON values, for `deserialize_roles`."""
    return {
        "haproxy": _serialize_fields(roles.haproxy),
        "services": {name: _serialize_fields(service) for name, service in roles.services.items()},
        "roles": {name: _serialize_fields(role) for name, role in roles.roles.items()},
        "digest": roles.digest,
    }


def deserialize_roles(state: dict[str, Any]) -> Roles:
    """Return the roles from JSON values. Raises ValueError, TypeError or KeyError if `state` is something else."""
    try:
        service, role = Service("", Template("1"), Template("")), Role("", {})
        return Roles(
            _check_types(HaproxySettings(**_deserialize_fields(state["haproxy"])), HaproxySettings()),
            {
                name: _check_types(Service(**_deserialize_fields(fields)), service)
                for name, fields in state["services"].items()
            },
            {name: _check_types(Role(**_deserialize_fields(fields)), role) for name, fields in state["roles"].items()},
            state["digest"],
        )
    except (AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not a cached roles.yml: {error}") from error


def _check_types(made: Any, model: Any) -> Any:  # noqa: ANN401  # a HaproxySettings, Service or Role, as the model is
    """Return `made` if its fields have the types of those of `model`. Raises ValueError.

    A field that is None in `model` may be a template, a list or None.
    """
    for name, given, expected in zip(made._fields, made, model, strict=True):
        right = (Template, tuple, type(None)) if expected is None else (type(expected),)
        if type(given) not in right:
            raise ValueError(f"not a cached roles.yml: {name} is {given!r}")
    return made


def _serialize_fields(value: HaproxySettings | Service | Role) -> dict[str, Any]:
    fields = value._asdict()
    return {name: {_TEMPLATE: one.text} if isinstance(one, Template) else one for name, one in fields.items()}


def _deserialize_fields(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: _deserialize_value(one) for name, one in fields.items()}


def _deserialize_value(one: Any) -> Any:  # noqa: ANN401  # what JSON held
    if isinstance(one, list):
        return tuple(one)
    if not isinstance(one, dict):
        return one
    if one.keys() == {_TEMPLATE} and isinstance(one[_TEMPLATE], str):
        return Template(one[_TEMPLATE])
    return {section: tuple(services) for section, services in one.items()}
