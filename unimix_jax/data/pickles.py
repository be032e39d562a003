"""A reader for the pickles of CIFAR's python version: a dict of numbers, texts, flat lists and images.

pickle itself runs the code that a file names, and even `numpy.dtype` alone lets a file take memory. This reader calls
nothing: the few opcodes of such files build plain values, and one fixed pattern becomes uint8 images. It touches no
files.
"""

import struct
from typing import Any, NamedTuple

import numpy as np

_MOST_OPCODES = 1_000_000  # the largest official file has 200,362
_HIGHEST_STACK = 10_000  # values; pickle puts at most 1,000 into a list at once
_LONGEST_NAME = 64  # bytes of a module or function


class Refused(ValueError):
    """The pickle holds something that CIFAR's files never hold; the message says what."""


class _Global(NamedTuple):
    """The name of a module and a function in the file."""

    name: str


class _NumpyResult(NamedTuple):
    """The result of a call of numpy: an array before its state is set, or the type of its elements."""

    kind: str


_MARK = object()
_ARRAY, _UINT8 = _NumpyResult("array"), _NumpyResult("uint8")
# Old and new numpy spell their modules differently.
_RECONSTRUCT = {f"numpy.{core}.multiarray _reconstruct" for core in ("core", "_core")}
_FROM_BUFFER = {f"numpy.{core}.numeric _frombuffer" for core in ("core", "_core")}
_GLOBALS = {*_RECONSTRUCT, *_FROM_BUFFER, "numpy ndarray", "numpy dtype", "_codecs encode"}
_SCALARS = (int, str, bytes, type(None))  # bool is an int

# name -> opcode, the form of its argument: a struct's, or s1, s4, s8 for text after its length in so many bytes.
_OPCODES = {
    "PROTO": (0x80, "<B"),
    "FRAME": (0x95, "<Q"),
    "STOP": (ord("."), ""),
    "MARK": (ord("("), ""),
    "EMPTY_DICT": (ord("}"), ""),
    "EMPTY_LIST": (ord("]"), ""),
    "EMPTY_TUPLE": (ord(")"), ""),
    "TUPLE": (ord("t"), ""),
    "TUPLE1": (0x85, ""),
    "TUPLE2": (0x86, ""),
    "TUPLE3": (0x87, ""),
    "NONE": (ord("N"), ""),
    "NEWTRUE": (0x88, ""),
    "NEWFALSE": (0x89, ""),
    "BININT": (ord("J"), "<i"),
    "BININT1": (ord("K"), "<B"),
    "BININT2": (ord("M"), "<H"),
    "BINSTRING": (ord("T"), "s4"),
    "SHORT_BINSTRING": (ord("U"), "s1"),
    "BINBYTES": (ord("B"), "s4"),
    "SHORT_BINBYTES": (ord("C"), "s1"),
    "BINBYTES8": (0x8E, "s8"),
    "BYTEARRAY8": (0x96, "s8"),
    "BINUNICODE": (ord("X"), "s4"),
    "SHORT_BINUNICODE": (0x8C, "s1"),
    "BINUNICODE8": (0x8D, "s8"),
    "BINPUT": (ord("q"), "<B"),
    "LONG_BINPUT": (ord("r"), "<I"),
    "MEMOIZE": (0x94, ""),
    "BINGET": (ord("h"), "<B"),
    "LONG_BINGET": (ord("j"), "<I"),
    "APPEND": (ord("a"), ""),
    "APPENDS": (ord("e"), ""),
    "SETITEM": (ord("s"), ""),
    "SETITEMS": (ord("u"), ""),
    "GLOBAL": (ord("c"), "lines"),
    "STACK_GLOBAL": (0x93, ""),
    "REDUCE": (ord("R"), ""),
    "BUILD": (ord("b"), ""),
}
_BY_CODE = {
    code: (name, form, struct.Struct(form) if form.startswith("<") else None) for name, (code, form) in _OPCODES.items()
}
_LENGTHS = {"s1": 1, "s4": 4, "s8": 8}


def loads(data: bytes) -> dict[bytes, Any]:
    """Return the dict of a pickled CIFAR file, protocols 2 to 5, of Python 2 or 3.

    Args:
      data: the content of the file.

    Returns:
      Its values by key, in bytes. A value is None, int, bytes or str, a list of the last three, or images uint8[N, M],
      a view of `data`.

    Raises:
      Refused: the bytes are anything else.
    """
    stack, memo, at, coded = [], {}, 0, 0
    for _ in range(_MOST_OPCODES):
        if at >= len(data):
            raise Refused("it is cut short")
        if len(stack) > _HIGHEST_STACK:
            raise Refused("it holds too many values at once")
        if data[at] not in _BY_CODE:
            raise Refused(f"it holds the opcode {data[at]:#04x}")
        name, form, number = _BY_CODE[data[at]]
        argument, at = _argument(data, at + 1, form, number)
        if name == "STOP":
            break
        if name == "GLOBAL":
            stack.append(_allowed(argument))
        elif form in _LENGTHS:
            stack.append(_text(argument) if name.endswith(("UNICODE", "UNICODE8")) else argument)
        elif name in ("BININT", "BININT1", "BININT2"):
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = _top(stack)
        elif name in ("BINGET", "LONG_BINGET"):
            if argument not in memo:
                raise Refused("it refers to a value that it does not hold")
            stack.append(memo[argument])
        elif name == "PROTO":
            if not 2 <= argument <= 5 or stack or memo:
                raise Refused(f"it is of pickle's protocol {argument}")
        elif name == "REDUCE":
            arguments, function = _popped(stack, 2)[::-1]
            result = _call(function, arguments)
            if isinstance(result, bytes):  # a file codes each of its texts once
                coded += len(result)
                if coded > len(data):
                    raise Refused("it holds the same text again and again")
            stack.append(result)
        elif name == "BUILD":
            target, state = _popped(stack, 2)
            stack.append(_built(target, state))
        elif name != "FRAME":
            _collect(name, stack)
    else:
        raise Refused(f"it has more than {_MOST_OPCODES} opcodes")
    if len(stack) != 1 or not isinstance(stack[0], dict):
        raise Refused("it holds no dict")
    return {key.encode(errors="replace") if isinstance(key, str) else key: value for key, value in stack[0].items()}


def _argument(data: bytes, at: int, form: str, number: struct.Struct | None) -> tuple[Any, int]:
    """Return the argument of an opcode, and the position of the next one."""
    if number:
        end = at + number.size
        if end > len(data):
            raise Refused("it is cut short")
        return number.unpack_from(data, at)[0], end
    if form in _LENGTHS:
        start = at + _LENGTHS[form]
        end = start + int.from_bytes(data[at:start], "little")
        if end > len(data):
            raise Refused("it is cut short")
        return data[start:end], end
    if form == "lines":
        words = []
        for _ in range(2):
            end = data.find(b"\n", at, at + _LONGEST_NAME)
            if end < 0:
                raise Refused("it holds a name without an end")
            words.append(data[at:end].decode("latin-1"))
            at = end + 1
        return " ".join(words), at
    return None, at


def _collect(name: str, stack: list) -> None:
    """Execute an opcode that makes or fills a list, tuple or dict, or puts a constant on the stack."""
    if name == "MARK":
        stack.append(_MARK)
    elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
        stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
    elif name == "EMPTY_DICT":
        stack.append({})
    elif name == "EMPTY_LIST":
        stack.append([])
    elif name == "EMPTY_TUPLE":
        stack.append(())
    elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
        items = _since_mark(stack) if name == "TUPLE" else _popped(stack, int(name[-1]))
        stack.append(_checked_tuple(items))
    elif name in ("APPEND", "APPENDS"):
        items = _popped(stack, 1) if name == "APPEND" else _since_mark(stack)
        target = _top(stack)
        if type(target) is not list or not all(type(item) in _LISTED for item in items):
            raise Refused("it holds a list of other things than numbers and texts")
        target.extend(items)
    elif name in ("SETITEM", "SETITEMS"):
        items = _popped(stack, 2) if name == "SETITEM" else _since_mark(stack)
        target = _top(stack)
        if type(target) is not dict or len(stack) != 1 or len(items) % 2:
            raise Refused("it holds more than one dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, bytes) or type(value) not in _VALUES:
                raise Refused("it holds a dict of other things than numbers, texts, lists and images")
            target[key] = value
    else:
        stack.append(_allowed(" ".join(_popped_words(stack))))


_LISTED = (int, bool, str, bytes)
_VALUES = (int, bool, str, bytes, type(None), list, np.ndarray)


def _top(stack: list):
    if not stack or stack[-1] is _MARK:
        raise Refused("it takes a value from an empty stack")
    return stack[-1]


def _popped(stack: list, count: int) -> list:
    """Remove the last values from the stack and return them in their order."""
    if len(stack) < count or any(value is _MARK for value in stack[-count:]):
        raise Refused("it takes a value from an empty stack")
    values = stack[-count:]
    del stack[-count:]
    return values


def _popped_words(stack: list) -> list[str]:
    words = _popped(stack, 2)
    if not all(isinstance(word, str) and len(word) <= _LONGEST_NAME for word in words):
        raise Refused("it holds a name that is no text")
    return words


def _since_mark(stack: list) -> list:
    values = []
    while stack:
        value = stack.pop()
        if value is _MARK:
            return values[::-1]
        values.append(value)
    raise Refused("it takes a value from an empty stack")


def _checked_tuple(items: list) -> tuple:
    """Return a tuple of arguments: plain values, names, results of numpy, and tuples of numbers."""
    for item in items:
        plain = isinstance(item, (*_SCALARS, _NumpyResult, _Global))
        if not (plain or (type(item) is tuple and all(type(part) is int for part in item))):
            raise Refused("it holds tuples in tuples")
    if len(items) > 8:
        raise Refused("it holds a long tuple")
    return tuple(items)


def _allowed(name: str) -> _Global:
    if name not in _GLOBALS:
        raise Refused(f"it asks for {name.replace(' ', '.')!r}, which no CIFAR file needs")
    return _Global(name)


def _call(function, arguments):
    """Return the result of a call: one of the four that arrays and Python 3's byte strings need."""
    if type(function) is not _Global or type(arguments) is not tuple:
        raise Refused("it calls a value that is no function")
    name = function.name
    if name == "_codecs encode" and len(arguments) == 2 and isinstance(arguments[0], str):
        if arguments[1] in ("latin1", b"latin1"):
            try:
                return arguments[0].encode("latin-1")
            except UnicodeEncodeError:
                raise Refused("it holds text in the place of bytes") from None
    elif name in _RECONSTRUCT and len(arguments) == 3:
        if arguments[0] == _Global("numpy ndarray") and arguments[1:] in (((0,), b"b"), ((0,), "b")):
            return _ARRAY
    elif name == "numpy dtype" and 1 <= len(arguments) <= 3:
        if arguments[0] in ("u1", b"u1"):
            return _UINT8
    elif name in _FROM_BUFFER and len(arguments) == 4:
        values, kind, shape, order = arguments
        if order in ("C", b"C"):
            return _images(values, kind, shape)
    raise Refused(f"it calls {name.replace(' ', '.')} in a way that no CIFAR file needs")


def _built(target, state):
    """Set the state of an array or a type; images in bytes have one possible state."""
    if target is _UINT8 and type(state) is tuple and state in _UINT8_STATES:
        return target
    if target is _ARRAY and type(state) is tuple and len(state) == 5 and state[0] == 1 and state[3] in (False, 0):
        return _images(state[4], state[2], state[1])
    raise Refused("it holds an array of other things than bytes in rows")


_UINT8_STATES = [(3, order, None, None, None, -1, -1, 0) for order in ("|", b"|")]


def _images(values, kind, shape) -> np.ndarray:
    if not (isinstance(values, bytes) and kind is _UINT8 and type(shape) is tuple and len(shape) == 2):
        raise Refused("it holds an array of other things than bytes in rows")
    if min(shape) < 1 or shape[0] * shape[1] != len(values):
        raise Refused(f"it holds {len(values)} bytes as an array of {shape[0]} x {shape[1]}")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Refused("it holds text that is no UTF-8") from None
