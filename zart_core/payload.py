"""Payloads: values to bytes by type, and back.

JSON by msgspec, so that what is stored is readable with psql or sqlite3 and decodes by the annotation of today's code.
Handled: ``msgspec.Struct``, dataclasses, ``TypedDict``, attrs classes, pydantic models (when pydantic is installed),
``datetime``, ``UUID``, ``Decimal``, ``Enum``, ``bytes``, ``Path`` and every JSON type. A :class:`Codec` may compress or
encrypt the bytes.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import types
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, Final, Protocol, cast, get_type_hints
from weakref import WeakKeyDictionary

import msgspec

from zart_core.errors import PayloadError

MAX_SIZE: Final = 128 * 1024 * 1024
_SAME: Final = frozenset((str, int, bool, type(None)))


class Codec(Protocol):
    """Turns encoded payloads into what is stored, and back: compression, encryption. Both directions must be pure."""

    def encode(self, data: bytes) -> bytes: ...

    def decode(self, data: bytes) -> bytes: ...


class Payloads:
    """Encodes and decodes; one object serves any number of threads.

    ``codec`` compresses or encrypts what is stored of inputs, results, events, published values and outputs; not of errors, which
    people have to be able to read.

    ``max_size`` is the most bytes one payload may have before the codec, 128 MiB unless given.
    """

    __slots__ = ("_codec", "_decoders", "_max_size")

    def __init__(self, *, codec: Codec | None = None, max_size: int = MAX_SIZE) -> None:
        self._codec = codec
        self._max_size = max_size
        self._decoders: dict[Any, msgspec.json.Decoder[Any]] = {Any: msgspec.json.Decoder()}

    def encode(self, value: object, *, what: str) -> bytes:
        """``value`` as bytes. ``PayloadError`` names ``what`` and the path to the part that cannot be encoded."""
        try:
            data = _ENCODER.encode(value)
        except Exception as error:
            path, blame = _find_unencodable(value, "$", 0)
            raise PayloadError(
                f"{what} cannot be encoded: {_text(error)} - at `{path}` (a {type(blame).__qualname__})"
            ) from error
        if b"null" in data and _may_be_nonfinite(value):
            _refuse_nonfinite(value, what)
        if len(data) > self._max_size:
            raise PayloadError(f"{what} has {len(data)} bytes, more than the limit of {self._max_size}")
        return data if self._codec is None else self._coded(data, what)

    def _coded(self, data: bytes, what: str) -> bytes:
        coded: object = None if self._codec is None else self._codec.encode(data)
        if not isinstance(coded, bytes):
            # A store may refuse anything else, and only when it is written: long after, and together with others.
            raise PayloadError(f"{what} cannot be stored: the codec gave {type(coded).__qualname__}, not bytes")
        return coded

    def decode(self, data: bytes, type_: Any, *, what: str) -> Any:
        """The value of type ``type_`` that ``data`` holds. ``PayloadError`` names ``what`` and the path to the bad field."""
        try:
            decoder = self._decoders[type_]
        except (KeyError, TypeError):  # not seen yet, or an unhashable annotation
            decoder = self._decoder(type_, what)
        try:
            return decoder.decode(data if self._codec is None else self._codec.decode(data))
        except Exception as error:
            raise PayloadError(f"{what} does not decode to {_name(type_)}: {_text(error)}") from error

    def dump(self, value: object) -> bytes:
        """``value`` as the part of a payload: not checked, and without the codec."""
        return _ENCODER.encode(value)

    def parse(self, data: bytes | msgspec.Raw, type_: Any, *, what: str) -> Any:
        """The value of type ``type_`` that a part of a decoded payload holds. ``PayloadError`` as for :meth:`decode`."""
        try:
            decoder = self._decoders[type_]
        except (KeyError, TypeError):
            decoder = self._decoder(type_, what)
        try:
            return decoder.decode(data)
        except Exception as error:
            raise PayloadError(f"{what} does not decode to {_name(type_)}: {_text(error)}") from error

    def round_trip(self, value: object, type_: Any, *, what: str) -> tuple[bytes, Any]:
        """The bytes to store, and the value that any replay will decode from them."""
        data = self.encode(value, what=what)
        kind = type(value)
        if kind in _SAME and (type_ is Any or type_ is kind):
            return data, value
        return data, self.decode(data, type_, what=what)

    def _decoder(self, type_: Any, what: str) -> msgspec.json.Decoder[Any]:
        try:
            decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(type_, dec_hook=_decode_foreign)
        except Exception as error:
            raise PayloadError(f"{what} cannot be decoded: {_name(type_)} is not supported: {_text(error)}") from error
        with contextlib.suppress(TypeError):  # unhashable: built anew each time
            self._decoders[type_] = decoder
        return decoder


def return_type(fn: Callable[..., Any]) -> Any:
    """The type that ``fn`` is annotated to return, ``Any`` when it is not."""
    if isinstance(fn, types.MethodType):
        fn = fn.__func__  # the usual case, made short: each step asks
    annotations: Mapping[str, Any] | None = getattr(fn, "__annotations__", None)
    if annotations is None:
        annotations = getattr(getattr(fn, "func", None), "__annotations__", None)  # functools.partial
        if annotations is None:
            annotations = getattr(_plain_function(fn), "__annotations__", None)  # a callable object
    if not annotations:
        return Any
    annotation = annotations.get("return", Any)
    if isinstance(annotation, str):
        return _resolve(fn, annotation)
    return annotation


# By the function itself: its code does not tell it from an equal one in another module, where names mean other types.
_resolved: WeakKeyDictionary[types.FunctionType, tuple[str, Any]] = WeakKeyDictionary()


def _resolve(fn: Callable[..., Any], annotation: str) -> Any:
    plain = fn if type(fn) is types.FunctionType else _plain_function(fn)
    if plain is None:
        return Any
    known = _resolved.get(plain)
    if known is not None and known[0] == annotation:
        return known[1]
    cells = zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=True)
    local = {name: cell.cell_contents for name, cell in cells if _filled(cell)}
    holder = types.SimpleNamespace(__annotations__={"return": annotation})
    try:
        hint = get_type_hints(holder, plain.__globals__, local, include_extras=True)["return"]
    except Exception as error:
        raise PayloadError(
            f"the return annotation {annotation!r} of {plain.__qualname__} cannot be resolved ({_text(error)}): "
            "make the name importable at run time, or give returns="
        ) from error
    if plain.__closure__ is None:
        _resolved[plain] = (annotation, hint)
    return hint


def _filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _plain_function(fn: Any) -> types.FunctionType | None:
    """The function behind a method, a partial, or an object that can be called."""
    kind: type[Any] = cast("type[Any]", type(fn))
    for candidate in (fn, getattr(fn, "func", None), kind.__dict__.get("__call__")):
        plain = getattr(candidate, "__func__", candidate)
        if isinstance(plain, types.FunctionType):
            return plain
    return None


def _encode_foreign(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)  # pydantic, without importing it
    if dump is not None and hasattr(value, "model_validate"):
        return dump(mode="json")
    if isinstance(value, PurePath):
        return str(value)
    for kind, plain in _BASES:  # a subclass of one of them is stored as what it is
        if isinstance(value, kind):
            return plain(value)
    raise NotImplementedError(f"objects of type {type(value).__qualname__} are not supported")


def _decode_foreign(type_: Any, value: Any) -> Any:
    validate = getattr(type_, "model_validate", None)
    if validate is not None:
        return validate(value)
    if isinstance(type_, type) and issubclass(type_, PurePath):
        return type_(value)
    raise NotImplementedError(f"the type {_name(type_)} is not supported")


_BASES: Final[tuple[tuple[type, Callable[[Any], Any]], ...]] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (bytes, bytes),
)
_ENCODER: Final = msgspec.json.Encoder(enc_hook=_encode_foreign)
_PACKER: Final = msgspec.msgpack.Encoder(enc_hook=_encode_foreign)
_NONFINITE: Final = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")


def _may_be_nonfinite(value: object) -> bool:
    """Whether ``value`` may hold a number that is not finite; a quick look, since most nulls are honest ones.

    MessagePack writes a float as it is, behind a byte of its own. Bytes of something else may look the same by chance.
    """
    try:
        return _NONFINITE.search(_PACKER.encode(value)) is not None
    except Exception:  # MessagePack has not room for everything that JSON has: whole numbers beyond 64 bits
        return True


def _refuse_nonfinite(value: object, what: str) -> None:
    """JSON has no NaN and no infinity: they would be stored as null, and another value would come back."""
    plain = msgspec.to_builtins(value, enc_hook=_encode_foreign)
    try:
        json.dumps(plain, allow_nan=False, check_circular=False)  # looks at every number at C's speed
    except ValueError:
        path, blame = _find_nonfinite(plain, "$")
        raise PayloadError(
            f"{what} cannot be encoded: {blame!r} is not a number of JSON - at `{path}` (a float)"
        ) from None


def _find_nonfinite(value: object, path: str) -> tuple[str, object]:
    """Where the first number is that is not finite. Only run when there is one."""
    if isinstance(value, float):
        return ("", value) if math.isfinite(value) else (path, value)
    for step, part in _parts(cast(object, value)) if isinstance(value, (dict, list, tuple)) else ():
        found = _find_nonfinite(part, path + step)
        if found[0]:
            return found
    return "", None


def _find_unencodable(value: object, path: str, depth: int) -> tuple[str, object]:
    """The innermost part of ``value`` that does not encode. Only run when encoding has failed, so it may be slow."""
    if depth < 32:
        for step, part in _parts(value):
            try:
                _ENCODER.encode(part)
            except Exception:
                return _find_unencodable(part, path + step, depth + 1)
    return path, value


def _parts(value: object) -> list[tuple[str, object]]:
    if isinstance(value, Mapping):
        return [(f".{key}", part) for key, part in cast(Mapping[Any, Any], value).items()]
    if isinstance(value, (list, tuple)):
        return [(f"[{i}]", part) for i, part in enumerate(cast(list[Any], value))]
    if isinstance(value, (set, frozenset)):
        return [("[...]", part) for part in cast(set[Any], value)]
    fields = getattr(value, "__struct_fields__", None) or getattr(value, "__dataclass_fields__", None)
    if fields is None:
        attrs = getattr(type(value), "__attrs_attrs__", ())
        fields = [attribute.name for attribute in attrs]
    return [(f".{name}", getattr(value, name, None)) for name in fields]


def _name(type_: Any) -> str:
    return getattr(type_, "__qualname__", None) if isinstance(type_, type) else str(type_)  # type: ignore[return-value]


def _text(error: BaseException) -> str:
    text = str(error)
    return text if len(text) <= 2_000 else text[:2_000] + "…"
