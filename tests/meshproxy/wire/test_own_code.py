"""Subclasses run copies of what they inherit, and notice nothing of it."""

from __future__ import annotations

from meshproxy.wire.own_code import OwnCode


class Base(OwnCode):
    def who(self, *, mark: str = "!") -> str:
        return type(self).__name__ + mark

    def kind(self) -> str:
        return "base"


class Middle(Base):
    def kind(self) -> str:
        return f"middle of {super().kind()}"


class Leaf(Middle): ...


def test_a_copy_does_what_the_method_does() -> None:
    assert Leaf().who() == "Leaf!"
    assert Leaf().who(mark="?") == "Leaf?"
    assert Leaf().kind() == "middle of base"
    assert Leaf.who.__qualname__ == "Base.who"


def test_each_class_has_code_of_its_own() -> None:
    assert len({id(cls.who.__code__) for cls in (Base, Middle, Leaf)}) == 3
    assert Leaf.kind.__code__ is not Middle.kind.__code__
