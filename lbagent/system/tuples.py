"""`typing.NamedTuple` as readers and type checkers know it, at a fifth of the price.

The one in `typing` compiles the type of every field. Some fifty are made before an event is handled: with `typing`
itself 5 ms of 40.
"""

from __future__ import annotations

from collections import namedtuple

TYPE_CHECKING = False
"""True to type checkers alone, as the one in `typing`."""

if TYPE_CHECKING:
    from typing import Any, NamedTuple  # what others import from here
else:
    _VALUE = 1
    """`annotationlib.Format.VALUE`; importing annotationlib takes 3 ms."""

    class _Tuples(type):
        """Makes a class body into what `collections.namedtuple` makes of its fields, methods and all."""

        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            if not bases:
                return super().__new__(cls, name, bases, body)
            fields = body.get("__annotations__")
            if fields is None:  # Python 3.14 in a module without `from __future__ import annotations`
                evaluate = body.get("__annotate_func__")
                fields = evaluate(_VALUE) if evaluate else {}
            defaults = [body.pop(field) for field in fields if field in body]
            made = namedtuple(name, fields, defaults=defaults, module=body.pop("__module__"))  # noqa: PYI024
            for key, value in body.items():
                setattr(made, key, value)
            return made

    class NamedTuple(metaclass=_Tuples):
        """A tuple whose fields have names; a field with a default has only such behind it."""


__all__ = ["TYPE_CHECKING", "NamedTuple"]
