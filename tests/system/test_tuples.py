"""tuples: what `typing.NamedTuple` makes of a class body, at a lower price."""

from __future__ import annotations

import ast
import pickle
import typing
from pathlib import Path

import pytest

import lbagent
from lbagent.system.tuples import NamedTuple


class Ours(NamedTuple):
    """A server."""

    name: str
    port: int = 80
    tags: typing.Mapping[str, str] = {}

    @property
    def address(self) -> str:
        """NAME:PORT."""
        return f"{self.name}:{self.port}"

    @classmethod
    def parsed(cls, text: str) -> Ours:
        return cls(text)

    def __str__(self) -> str:
        return f"<{self.name}>"


class Theirs(typing.NamedTuple):
    """A server."""

    name: str
    port: int = 80
    tags: typing.Mapping[str, str] = {}

    @property
    def address(self) -> str:
        """NAME:PORT."""
        return f"{self.name}:{self.port}"

    @classmethod
    def parsed(cls, text: str) -> Theirs:
        return cls(text)

    def __str__(self) -> str:
        return f"<{self.name}>"


def attributes(one: type) -> set[str]:
    """Its attributes, without those that hold the annotations: each release of Python keeps them elsewhere."""
    return {name for name in vars(one) if not name.startswith("__annot")} - {"__orig_bases__"}


def test_it_is_what_typing_makes() -> None:
    ours: typing.Any
    theirs: typing.Any
    ours, theirs = Ours("web01", 8080), Theirs("web01", 8080)

    assert ours == theirs == ("web01", 8080, {})
    assert repr(ours) == "Ours(name='web01', port=8080, tags={})"
    assert [str(ours), ours.address, Ours.__doc__] == [str(theirs), theirs.address, Theirs.__doc__]
    assert tuple(Ours.parsed("web02")) == tuple(Theirs.parsed("web02")) == ("web02", 80, {})
    assert ours._replace(port=1) == theirs._replace(port=1)
    assert ours._asdict() == theirs._asdict()
    assert (type(ours).__name__, type(ours).__qualname__, type(ours).__module__) == ("Ours", "Ours", __name__)
    assert Ours.__match_args__ == Theirs.__match_args__
    assert Ours.__annotations__.keys() == Theirs.__annotations__.keys()
    assert attributes(Ours) == attributes(Theirs)
    assert pickle.loads(pickle.dumps(ours)) == ours


def test_fields_are_known_without_the_future_import() -> None:
    code = """if True:
        from lbagent.system.tuples import NamedTuple

        class Server(NamedTuple):
            name: str
            port: int = 80
    """
    names: dict[str, typing.Any] = {"__name__": __name__}

    exec(compile(code, "server.py", "exec", dont_inherit=True), names)

    assert names["Server"]("web01") == ("web01", 80)
    assert names["Server"]._fields == ("name", "port")


@pytest.mark.parametrize("argv", [(), (1, 2, 3, 4)])
def test_what_fits_no_field_is_refused(argv: tuple[int, ...]) -> None:
    with pytest.raises(TypeError):
        Ours(*argv)  # type: ignore[arg-type]


def test_no_room_takes_it_from_typing() -> None:
    said = [
        (path.name, name.name)
        for path in Path(lbagent.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.ImportFrom) and node.module == "typing"
        for name in node.names
        if name.name == "NamedTuple"
    ]

    assert said == [("tuples.py", "NamedTuple")]
