"""What a form is in which values travel that MessagePack knows nothing of, and which types have fields of their own."""

from typing import Any, is_typeddict


class Form:
    """How the values of one annotation become bytes and back. Subclasses are doors to what does it."""

    name: str
    """What the annotation is called in errors."""
    code: int
    """The number of the MessagePack extension that the bytes travel in."""
    same_user_only = False
    """Whether bytes of somebody else must not even be looked at."""

    def dump(self, value: Any) -> Any:
        """The value as a MessagePack extension. Raises whatever says that there is no form for this value."""
        raise NotImplementedError

    def load(self, data: bytes | memoryview) -> Any:
        """Raises whatever says that these bytes are no value of the annotated type."""
        raise NotImplementedError

    def check(self, value: Any) -> None:
        """Raises TypeError for a value that is not of the annotated type."""
        raise NotImplementedError


class Mark:
    """What `Annotated` has beside a type whose values travel in another form."""

    name: str

    def form(self, kind: Any) -> Form:
        """The form of values of that type. Raises UsageError when it has none."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.name


_OF_FIELDS = ("__dataclass_fields__", "__struct_fields__", "__attrs_attrs__", "_fields")


def has_fields(kind: Any) -> bool:
    """Whether a type has named fields with types of their own. By marks: dataclasses takes 1.5 ms to import."""
    return any(hasattr(kind, mark) for mark in _OF_FIELDS) or is_typeddict(kind)
