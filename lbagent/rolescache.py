"""Roles as plain JSON, so that a handler need not load a YAML library (11 ms) to read the roles.yml of yesterday."""

from __future__ import annotations

from lbagent.roles import HaproxySettings, Role, Roles, Service, Template
from lbagent.tuples import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


def frozen(roles: Roles) -> list[Any]:
    """What `thawed` makes the same roles of."""
    services = {name: [service.port.text, service.options.text] for name, service in roles.services.items()}
    kept = {
        name: [*role[1:4], None if role.options is None else role.options.text, *role[5:]]
        for name, role in roles.roles.items()
    }
    return [list(roles.haproxy), services, kept, roles.digest]


def thawed(state: list[Any]) -> Roles:
    """The roles that were frozen. Raises ValueError, TypeError, KeyError where `state` is something else."""
    try:
        (config, reload, *rest), services, kept, digest = state
        return Roles(
            HaproxySettings(tuple(config), reload and tuple(reload), *rest),
            {name: Service(name, Template(port), Template(options)) for name, (port, options) in services.items()},
            {name: _role(name, fields) for name, fields in kept.items()},
            digest,
        )
    except (AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"is no roles.yml that was kept: {error}") from error


def _role(name: str, fields: list[Any]) -> Role:
    sections, interval, networks, options, remove_failed, most, drain = fields
    return Role(
        name,
        {section: tuple(services) for section, services in sections.items()},
        interval,
        tuple(networks),
        None if options is None else Template(options),
        remove_failed,
        most,
        drain,
    )
