"""Damage files: cut, changed and repeated bytes, values of other kinds, other headers, other opcodes."""

import copy
import io
import json
import zipfile

import numpy as np

TOKENS = (
    b"\0", b"\xff" * 8, b"\n", b"-1", b"1e999", b"NaN", b"-Infinity", b"9" * 30, b"9" * 5000, b"[" * 3000,
    b'{"a":' * 3000,
    b"(" * 300, b"\\ud800", b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"', b"'", b"{}", b"[]", b"null", b"true", b"=", b"/../",
    b"<f4", b"|O", b"F8_E4M3", b"(10000000000,)", (2**63).to_bytes(8, "little"), (2**31 - 1).to_bytes(4, "little"),
)  # fmt: skip
ODD_VALUES = (
    None, True, -1, 0, 5, 2**63, 2**70, 1e308, "", "x", "\ud800", "\0", "a" * 5000, [], [1], [[[]]], {}, {"a": 1},
    {"name": []}, "=1+1", "1e999", [None], ["x"] * 3,
)  # fmt: skip


def damaged(data: bytes, random: np.random.RandomState) -> bytes:
    """Cut, change, repeat or fill a file's bytes, mostly near its beginning, where sizes stand."""
    data = bytearray(data)
    for _ in range(random.choice([1, 1, 1, 2, 5])):
        reach = max(1, min(len(data), random.choice([12, 200, 1 << 30])))
        at, kind = random.randint(reach), random.randint(7)
        if kind == 0:
            del data[at:]
        elif kind == 1 and data:
            data[at] = random.randint(256)
        elif kind == 2 and data:
            data[at] ^= 1 << random.randint(8)
        elif kind == 3:
            data[at:at] = TOKENS[random.randint(len(TOKENS))]
        elif kind == 4:
            token = TOKENS[random.randint(len(TOKENS))]
            data[at : at + len(token)] = token
        elif kind == 5:
            del data[at : at + 1 + random.randint(40)]
        else:
            data[at:at] = data[at : at + 1 + random.randint(200)]
    return bytes(data)


def damaged_json(data: bytes, random: np.random.RandomState) -> bytes:
    """Put a value of another kind somewhere into JSON, take one out, or damage the bytes."""
    if random.randint(4) == 0:
        return damaged(data, random)
    lines = data.decode().splitlines() if data.count(b"\n{") else [data.decode()]
    which = random.randint(len(lines))
    root = {"": json.loads(lines[which])}
    for _ in range(random.choice([1, 1, 2])):
        places = []
        layer = [root]
        while layer:
            part = layer.pop()
            keys = list(part) if isinstance(part, dict) else range(len(part))
            places += [(part, key) for key in keys]
            layer += [part[key] for key in keys if isinstance(part[key], dict | list)]
        if not places:
            break
        part, key = places[random.randint(len(places))]
        if random.randint(4) == 0 and part is not root:
            del part[key]
        else:
            part[key] = copy.deepcopy(ODD_VALUES[random.randint(len(ODD_VALUES))])
    lines[which] = json.dumps(root[""])
    return ("\n".join(lines) + "\n").encode()


def damaged_npz(data: bytes, random: np.random.RandomState) -> bytes:
    """Damage an archive's bytes, or those of an array in it, whose checksum is then right."""
    if random.randint(3) == 0:
        return damaged(data, random)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = list(members)[random.randint(len(members))]
    if random.randint(3):
        members[name] = damaged(members[name], random)
    else:
        header = io.BytesIO()
        types = ["<f4", ">i8", "|O", "|V7", "<U99999999", "|S0", "<f3", "<M8[s]", [("a", "<f4")], "|b1"]
        shape = [(), (3,), (2**40,), (10**18, 10**18), (0, 2**62), (1,) * 70, (3, 3), (-1,)][random.randint(8)]
        about = {"descr": types[random.randint(10)], "fortran_order": bool(random.randint(2)), "shape": shape}
        np.lib.format.write_array_header_2_0(header, about)
        members[name] = header.getvalue() + bytes(random.randint(0, 40))
    methods = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", methods[random.choice([0, 0, 0, 1, 1, 2, 3])]) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def damaged_pickle(data: bytes, random: np.random.RandomState) -> bytes:
    """Damage a pickle, or write a program of opcodes that CIFAR's files have."""
    if random.randint(3):
        return damaged(data, random)
    pieces = (
        b"(", b"}", b"]", b")", b"t", b"\x85", b"\x86", b"\x87", b"N", b"\x88", b"a", b"e", b"s", b"u", b"R", b"b",
        b"\x94", b"q\0", b"q\1", b"h\0", b"h\1", b"j\2\0\0\0", b"K\3", b"M\0\x0c", b"J\xff\xff\xff\xff", b"U\1b",
        b"U\6labels", b"U\4data", b"C\x02u1", b"X\1\0\0\0b", b"X\6\0\0\0latin1", b"B\xff\xff\xff\x7f",
        b"\x8a\x09" + b"\1" * 9, b"I1\n", b"0", b"2", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n",
        b"cnumpy.core.multiarray\n_reconstruct\n", b"c_codecs\nencode\n", b"cnumpy._core.numeric\n_frombuffer\n",
        b"cos\nsystem\n", b"\x93", b"\x95" + bytes(8), b"\x96" + bytes(8), b"P1\n",
    )  # fmt: skip
    count = random.randint(1, 60)
    program = b"".join(pieces[i] for i in random.randint(len(pieces), size=count))
    return b"\x80\2" + program + b"."


def damaged_tensors(data: bytes, random: np.random.RandomState) -> bytes:
    """Damage a .safetensors file, or its JSON with a length that is right."""
    if random.randint(3) == 0:
        return damaged(data, random)
    end = 8 + int.from_bytes(data[:8], "little")
    header = damaged_json(data[8:end].rstrip(), random)
    if random.randint(2):
        kinds = [b"F8_E4M3", b"F8_E5M2", b"BF16", b"F4", b"C64", b"BOOL", b"I64", b"F64"]
        header = header.replace(b'"F32"', b'"' + kinds[random.randint(8)] + b'"', 1)
    return len(header).to_bytes(8, "little") + header + data[end:]
