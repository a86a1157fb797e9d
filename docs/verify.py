#!/usr/bin/env python3
"""Checks an exported audit log without Keyward, by Python's standard library alone: python3 verify.py DIR [VKEY]...

Of each tree: a key signs the checkpoint (Ed25519, RFC 8032), and the entries lead to the root that it names (RFC 6962).
Without a VKEY the keys in DIR count, which show that the log is whole but not whose it is. keyward-verify checks more."""
import base64, hashlib, sys
from pathlib import Path

P, D = 2**255 - 19, -121665 * pow(121666, -1, 2**255 - 19)
ORDER = 2**252 + 27742317777372353535851937790883648493
sha = lambda *parts: hashlib.sha256(b"".join(parts)).digest()

def point(raw):
    y = int.from_bytes(raw, "little") & 2**255 - 1
    u, v = y * y - 1, D * y * y + 1
    x = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    x = x if (v * x * x - u) % P == 0 else x * pow(2, (P - 1) // 4, P) % P
    if y >= P or (v * x * x - u) % P or (x == 0 and raw[31] >> 7):
        raise ValueError("not a point of the curve")
    return (x if x % 2 == raw[31] >> 7 else P - x, y)

def add(a, b):
    k = D * a[0] * b[0] * a[1] * b[1]
    return ((a[0] * b[1] + a[1] * b[0]) * pow(1 + k, -1, P) % P, (a[1] * b[1] + a[0] * b[0]) * pow(1 - k, -1, P) % P)

def times(n, a):
    sum = (0, 1)
    for bit in bin(n)[2:]:
        sum = add(add(sum, sum), a) if bit == "1" else add(sum, sum)
    return sum

def signs(key, text, signature):
    r, s = signature[:32], int.from_bytes(signature[32:], "little")
    h = int.from_bytes(hashlib.sha512(r + key + text).digest(), "little") % ORDER
    return len(signature) == 64 and s < ORDER and times(s, point(bytes([88] + [102] * 31))) == add(point(r), times(h, point(key)))

def entries(folder, size):
    for n in range((size + 255) // 256):
        width, rest, name = min(256, size - 256 * n), n // 1000, f"{n % 1000:03}"
        while rest:
            name, rest = f"x{rest % 1000:03}/{name}", rest // 1000
        data, at = (folder / "tile/entries" / (name if width == 256 else f"{name}.p/{width}")).read_bytes(), 0
        while at < len(data):
            end = at + 2 + int.from_bytes(data[at:at + 2], "big")
            yield data[at + 2:end]
            at = end

def root(leaves):
    count, row = 0, []
    for count, leaf in enumerate(leaves, 1):
        row.append(sha(b"\0", leaf))
        for _ in range((count & -count).bit_length() - 1):
            row[-2:] = [sha(b"\1", *row[-2:])]
    while len(row) > 1:
        row[-2:] = [sha(b"\1", *row[-2:])]
    return count, (row or [sha()])[0]

def check(folder, vkeys):
    text, lines = (folder / "checkpoint").read_text().rsplit("\n\n", 1)
    origin, size, want = text.split("\n")[:3]
    for name, number, key in (vkey.split("+", 2) for vkey in vkeys):
        key = base64.b64decode(key)
        for line in lines.splitlines():
            dash, signer, blob = line.split(" ")
            blob = base64.b64decode(blob)
            if signer == name == origin and key[:1] == b"\1" and blob[:4] == sha(name.encode(), b"\n", key)[:4] == bytes.fromhex(number):
                if f"/{folder.name}" in origin and signs(key[1:], text.encode() + b"\n", blob[4:]):
                    if root(entries(folder, int(size))) == (int(size), base64.b64decode(want)):
                        return f"{folder.name}: {size} entries, origin {origin}, root {base64.b64decode(want).hex()}"
                    raise ValueError("the entries do not lead to the root of the checkpoint")
    raise ValueError("no key to believe signs the checkpoint")

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for tree in ["change", "access"]:
        try:
            print(check(folder / tree, sys.argv[2:] or (folder / "vkeys").read_text().split()))
        except (OSError, ValueError) as error:
            sys.exit(f"{tree}: {error}")
    print("intact" if sys.argv[2:] else "intact, by the keys that came with it")
