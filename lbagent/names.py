"""What a name, an address, a role or a tag value may look like before it may go anywhere.

Serf restricts none of them: names with blanks, newlines, NUL or 1,000 bytes and addresses
like `<nil>` or `?616263` all reach the handler. One room decides, for Serf's side and HAProxy's,
and for what people are shown.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import pairwise

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""A node, role or section."""

SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
"""A service: no dot, so that the last dot of NODE.SERVICE parts the two."""

TAG_VALUE = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""A Serf tag that may stand in a `server` line."""

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
IPV4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
"""The one spelling of an IPv4 address, as a pattern."""

_IPV4 = re.compile(IPV4)
# Possessive, so that nothing is remembered for a second try.
_NAMES = re.compile(rf"(?:{NAME.pattern}\n)*+")
_IPV4S = re.compile(rf"(?:{_IPV4.pattern}\n)*+")
_DOUBTFUL = re.compile(r"\n(?:0|127|169\.254|22[4-9]|2[3-5][0-9])\.")
_DIGITS = re.compile(r"([0-9]+)")

_NEVER_V4 = ("0.", "169.254.", *(f"{octet}." for octet in range(224, 256)))
_CAREFUL = ("127.", *_NEVER_V4)

_SHAPE = str.maketrans("123456789", "000000000")


def are_names(texts: Collection[str]) -> bool:
    """Whether every text is a node's name; thousands at a time."""
    text = "\n".join([*texts, ""])
    return _NAMES.fullmatch(text) is not None and text.count("\n") == len(texts)


def are_addresses(texts: Collection[str]) -> bool:
    """Whether every text is the one spelling of an IP address; thousands at a time."""
    text = "\n".join([*texts, ""])
    if _IPV4S.fullmatch(text) and text.count("\n") == len(texts):
        return True
    return all(canonical_address(one) == one for one in texts)


def canonical_address(text: str) -> str | None:
    """The one spelling of an IP address, or None where `text` is none; a zone (`%eth0`) is none."""
    if _IPV4.fullmatch(text):
        return text
    if ":" not in text or "%" in text:
        return None
    import ipaddress  # noqa: PLC0415  # 3 ms that only IPv6 has to pay

    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return None
    # ::ffff:127.0.0.1 is 127.0.0.1 to the kernel, so it has to be to our rules.
    return str(address.ipv4_mapped or address)


def explain_refused_address(address: str, networks: Sequence[str] = ()) -> str | None:
    """Why a canonical `address` may not be written, given a role's `networks`; None where it may."""
    if not networks and ":" not in address and not address.startswith(_CAREFUL):
        return None
    kind = _kind_v6(address) if ":" in address else _kind_v4(address)
    if kind and kind != "loopback":
        return f"{address} is {'an' if kind == 'unspecified' else 'a'} {kind} address"
    if kind and not any(_is_loopback(network) and _holds(network, address) for network in networks):
        return f"{address} is a loopback address, which the role's networks do not name"
    if networks and not any(_holds(network, address) for network in networks):
        return f"{address} is outside the role's networks"
    return None


def role_names(tag: str) -> tuple[str, ...]:
    """The roles that a Serf tag `role` names, in its order: one, or several with commas between them."""
    if "," not in tag:
        return (tag,) if tag else ()
    return tuple(dict.fromkeys(name for one in tag.split(",") if (name := one.strip(" "))))


def make_printable(words: str) -> str:
    """The words with nothing in them that a terminal obeys: what is not printable, a line's end too, is a `?`."""
    return words if words.isprintable() else "".join(one if one.isprintable() else "?" for one in words)


def brief(words: str, limit: int = 500) -> str:
    """`words` cut to at most so many characters: what other programs print may have any size."""
    return words if len(words) <= limit else f"{words[: limit - 2]} …"


def format_count(count: int, noun: str) -> str:
    """A number with its noun."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key under which web2 comes before web10."""
    parts: list[str | int] = list(_DIGITS.split(name))
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def are_plainly_allowed(addresses: Collection[str]) -> bool:
    """Whether `refusal` would let every one of these pass where a role names no networks; thousands at a time."""
    text = "\n".join(["", *addresses])
    return ":" not in text and _DOUBTFUL.search(text) is None


def sort_names(names: Collection[str]) -> list[str]:
    """The names in natural order."""
    # Names of one shape (web00, web07, web12) are in natural order where they are in plain order, which is
    # ten times as fast to find; and of most shapes, all of one come before all of the other.
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


def _kind_v4(address: str) -> str | None:
    if address.startswith("127."):
        return "loopback"
    if not address.startswith(_NEVER_V4):
        return None
    if address.startswith("0."):
        return "unspecified"
    if address.startswith("169.254."):
        return "link-local"
    return "multicast" if int(address.split(".", 1)[0]) < 240 else "broadcast"  # noqa: PLR2004  # 240/4


def _kind_v6(address: str) -> str | None:
    import ipaddress  # noqa: PLC0415

    parsed = ipaddress.IPv6Address(address)
    for kind in ("unspecified", "loopback", "multicast", "link_local"):
        if getattr(parsed, f"is_{kind}"):
            return kind.replace("_", "-")
    return None


def _is_loopback(network: str) -> bool:
    return network.startswith("127.") or network == "::1/128"


def _holds(network: str, address: str) -> bool:
    if (":" in network) != (":" in address):
        return False
    base, _, bits = network.partition("/")
    if ":" in address:
        import ipaddress  # noqa: PLC0415

        return ipaddress.IPv6Address(address) in ipaddress.IPv6Network(network)
    shift = 32 - int(bits)
    return _number(address) >> shift == _number(base) >> shift


def _number(address: str) -> int:
    a, b, c, d = address.split(".")
    return int(a) << 24 | int(b) << 16 | int(c) << 8 | int(d)
