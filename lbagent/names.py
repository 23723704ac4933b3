"""Validate and format names, addresses, roles and tag values.

Serf restricts none of them: names with blanks, newlines, NUL or 1,000 bytes and addresses such as `<nil>` or `?616263`
all reach the handler. This module decides for serf/, for haproxy/ and for what is printed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from itertools import pairwise

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""The name of a node, role or section."""

NAME_RULE = "at most 63 letters, digits, '.', '-' and '_', beginning with a letter or digit"
"""NAME, for a message."""

SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
"""The name of a service. It has no dot, so that the last dot of NODE.SERVICE separates the two."""

SERVICE_RULE = "at most 63 letters, digits, '-' and '_', beginning with a letter or digit"
"""SERVICE, for a message."""

TAG_VALUE = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""The value of a Serf tag that may become part of a `server` line."""

TAG_RULE = "at most 64 letters, digits, '.', '-' and '_'"
"""TAG_VALUE, for a message."""

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
IPV4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
"""Pattern of an IPv4 address in its canonical form."""

_IPV4 = re.compile(IPV4)
# Possessive quantifiers: no backtracking positions are kept.
_NAMES = re.compile(rf"(?:{NAME.pattern}\n)*+")
_IPV4S = re.compile(rf"(?:{_IPV4.pattern}\n)*+")
_DOUBTFUL = re.compile(r"\n(?:0|127|169\.254|22[4-9]|2[3-5][0-9])\.")
_DIGITS = re.compile(r"([0-9]+)")

_NEVER_V4 = ("0.", "169.254.", *(f"{octet}." for octet in range(224, 256)))
_CAREFUL = ("127.", *_NEVER_V4)

_SHAPE = str.maketrans("123456789", "000000000")


_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def are_names(texts: Collection[str]) -> bool:
    """Return whether every text is a valid node name. Fast for thousands of names."""
    text = "\n".join([*texts, ""])
    return _NAMES.fullmatch(text) is not None and text.count("\n") == len(texts)


def are_addresses(texts: Collection[str]) -> bool:
    """Return whether every text is an IP address in canonical form. Fast for thousands of addresses."""
    return are_ipv4_addresses(texts) or all(canonical_address(one) == one for one in texts)


def are_ipv4_addresses(texts: Collection[str]) -> bool:
    """Return whether every text is an IPv4 address in canonical form. Fast for thousands of addresses."""
    text = "\n".join([*texts, ""])
    return _IPV4S.fullmatch(text) is not None and text.count("\n") == len(texts)


def canonical_address(text: str) -> str | None:
    """Return the canonical form of an IP address, or None if `text` is not one. A zone (`%eth0`) is not accepted."""
    if _IPV4.fullmatch(text):
        return text
    if ":" not in text or "%" in text:
        return None
    import ipaddress  # noqa: PLC0415  # takes 3 ms, only needed for IPv6

    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return None
    # The kernel treats ::ffff:127.0.0.1 as 127.0.0.1, so the rules have to as well.
    return str(address.ipv4_mapped or address)


def explain_refused_address(address: str, networks: Sequence[str] = ()) -> str | None:
    """Return why a canonical `address` may not be written, given a role's `networks`; None where it may."""
    if not networks and ":" not in address and not address.startswith(_CAREFUL):
        return None
    # Fast path: thousands of addresses are in a few networks. Only a loopback network has prefixes of loopback.
    if networks and address.startswith(_list_prefixes(tuple(networks))) and not address.startswith(_NEVER_V4):
        return None
    kind = _classify_ipv6(address) if ":" in address else _classify_ipv4(address)
    if kind and kind != "loopback":
        return f"{address} is {'an' if kind == 'unspecified' else 'a'} {kind} address"
    if kind and not any(_is_loopback(network) and _is_in_network(network, address) for network in networks):
        return f"{address} is a loopback address that is not in the role's networks"
    if networks and not any(_is_in_network(network, address) for network in networks):
        return f"{address} is outside the role's networks"
    return None


def role_names(tag: str) -> tuple[str, ...]:
    """Return the roles that a Serf tag `role` lists, in its order: one, or several separated by commas."""
    if "," not in tag:
        return (tag,) if tag else ()
    return tuple(dict.fromkeys(name for one in tag.split(",") if (name := one.strip(" "))))


def make_printable(words: str) -> str:
    """Replace every character that is not printable, line ends and escape sequences included, by `?`."""
    return words if words.isprintable() else "".join(one if one.isprintable() else "?" for one in words)


def brief(words: str, limit: int = 500) -> str:
    """Cut `words` to at most `limit` characters: output of other programs may have any size."""
    return words if len(words) <= limit else f"{words[: limit - 2]} …"


def format_age(seconds: float) -> str:
    """Return a time span in the largest unit of which there are at least two: `45s`, `90m`, `3h`, `120d`."""
    whole = max(0, int(seconds))
    size, unit = next(((size, unit) for size, unit in _UNITS if whole >= 2 * size), _UNITS[-1])
    return f"{whole // size}{unit}"


def format_count(count: int, noun: str) -> str:
    """Format a count with its noun, such as `1 line` or `2 lines`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Return the sort key for natural order: web2 before web10."""
    parts: list[str | int] = list(_DIGITS.split(name))
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def are_plainly_allowed(addresses: Collection[str]) -> bool:
    """Return whether `explain_refused_address` accepts all of these for a role without networks.

    May return False for addresses that are accepted. Fast for thousands of addresses.
    """
    text = "\n".join(["", *addresses])
    return ":" not in text and _DOUBTFUL.search(text) is None


def sort_names(names: Collection[str]) -> list[str]:
    """Sort names in natural order: web2 before web10."""
    # Names of one shape (web00, web07, web12) have the same plain and natural order, and plain sorting is ten times
    # faster. With several shapes, usually all names of one shape sort before all of the next.
    shape_of = "\n".join(names).translate(_SHAPE).split("\n")
    if len(set(shape_of)) == 1:
        return sorted(names)
    shapes: dict[str, list[str]] = {}
    for name, shape in zip(names, shape_of, strict=True):
        shapes.setdefault(shape, []).append(name)
    groups = [sorted(group) for group in shapes.values()]
    groups.sort(key=lambda group: natural_key(group[0]))
    if all(natural_key(one[-1]) < natural_key(other[0]) for one, other in pairwise(groups)):
        return [name for group in groups for name in group]
    return sorted(names, key=natural_key)


def _classify_ipv4(address: str) -> str | None:
    if address.startswith("127."):
        return "loopback"
    if not address.startswith(_NEVER_V4):
        return None
    if address.startswith("0."):
        return "unspecified"
    if address.startswith("169.254."):
        return "link-local"
    return "multicast" if int(address.split(".", 1)[0]) < 240 else "broadcast"  # noqa: PLR2004  # 240/4


def _classify_ipv6(address: str) -> str | None:
    import ipaddress  # noqa: PLC0415  # as above

    parsed = ipaddress.IPv6Address(address)
    for kind in ("unspecified", "loopback", "multicast", "link_local"):
        if getattr(parsed, f"is_{kind}"):
            return kind.replace("_", "-")
    return None


@lru_cache
def _list_prefixes(networks: tuple[str, ...]) -> tuple[str, ...]:
    """Return the beginnings of all addresses in the IPv4 networks of whole octets: `10.` for 10.0.0.0/8."""
    octets = ((network, {"8": 1, "16": 2, "24": 3}.get(network.partition("/")[2])) for network in networks)
    return tuple(
        ".".join([*network.split(".")[:count], ""]) for network, count in octets if count and ":" not in network
    )


def _is_loopback(network: str) -> bool:
    return network.startswith("127.") or network == "::1/128"


def _is_in_network(network: str, address: str) -> bool:
    if (":" in network) != (":" in address):
        return False
    base, _, bits = network.partition("/")
    if ":" in address:
        import ipaddress  # noqa: PLC0415  # as above

        return ipaddress.IPv6Address(address) in ipaddress.IPv6Network(network)
    shift = 32 - int(bits)
    return _convert_ipv4(address) >> shift == _convert_ipv4(base) >> shift


def _convert_ipv4(address: str) -> int:
    a, b, c, d = address.split(".")
    return int(a) << 24 | int(b) << 16 | int(c) << 8 | int(d)
