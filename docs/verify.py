#!/usr/bin/env python3
"""A second opinion on an exported audit log, with nothing but Python: python3 docs/verify.py BUNDLE log.vkey [KNOWN ...]
It verifies the events in tile/ and not what events.jsonl, events.csv and events.ocsf.jsonl make of them, and says so. Exit codes as `audit verify`: 10 valid (it asks no witness), 20 incomplete, 30 diverges from a KNOWN one, 40 invalid."""
import base64, functools, hashlib, json, pathlib, sys
sha = lambda *parts: hashlib.sha256(b"".join(parts)).digest()
# The only events whose payloads may be withheld: they have fields that are the product's own. None may be erased.
INWARD = b"member.added invitation.issued invitation.resent api_key.issued api_key.rotated".split()
# Ed25519 (RFC 8032), verification only.
P, L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
def recover_x(y, sign):
    xx = (y * y - 1) * pow(D * y * y + 1, P - 2, P)
    x = pow(xx, (P + 3) // 8, P)
    x = x * pow(2, (P - 1) // 4, P) % P if (x * x - xx) % P else x
    if (x * x - xx) % P or (x == 0 and sign):
        raise ValueError("not a point of the curve")
    return P - x if x & 1 != sign else x
def point(data):
    y = int.from_bytes(data, "little")
    x, y = recover_x(y & (2**255 - 1), y >> 255), y & (2**255 - 1)
    return (x, y, 1, x * y % P)
def add(p, q):
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % P, g * h % P, f * g % P, e * h % P)
def mul(n, p):
    q = (0, 1, 1, 0)
    while n:
        q, p, n = add(q, p) if n & 1 else q, add(p, p), n >> 1
    return q
BASE = point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))
def signed(public, message, signature):
    s = int.from_bytes(signature[32:], "little")
    h = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % L
    a, b = mul(s, BASE), add(point(signature[:32]), mul(h, point(public)))
    return s < L and (a[0] * b[2] - b[0] * a[2]) % P == 0 and (a[1] * b[2] - b[1] * a[2]) % P == 0
def checkpoint(note, origin, public):
    """Size and root of a checkpoint that the log has signed."""
    text, lines = note.rsplit("\n\n", 1)
    (name, size, root), text = text.split("\n")[:3], text + "\n"
    key_id = sha(origin.encode(), b"\n\x01", public)[:4]
    own = [base64.b64decode(line.split(" ")[2]) for line in lines.splitlines() if line.split(" ")[1] == origin]
    own = [signature[4:] for signature in own if signature[:4] == key_id]
    if name != origin or not own or not all(signed(public, text.encode(), signature) for signature in own):
        raise ValueError("not signed by the pinned key")
    return int(size), base64.b64decode(root)
def root(stack):
    """The root over perfect subtrees, given as (size, hash), the largest first."""
    return functools.reduce(lambda right, left: sha(b"\x01", left[1], right), reversed(stack[:-1]), stack[-1][1])
def main(folder, pin, *known):
    bundle, wrong, diverges, missing = pathlib.Path(folder), [], [], []
    manifest = json.loads((bundle / "manifest.json").read_text())
    name, _, key = pathlib.Path(pin).read_text().strip().split("+", 2)
    public, origin, size = base64.b64decode(key)[1:], manifest["origin"], manifest["size"]
    if origin not in (name, f"{name}/{manifest['org']}"):
        sys.exit(print(f"the bundle is of {origin}, the key of {name}") or 40)
    listed = {file["path"] for file in manifest["files"]}
    for file in manifest["files"]:
        path = bundle / file["path"]
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != file["sha256"]:
            wrong.append(f"{file['path']} is not the file that the manifest names")
    stack, roots, idx, parked = [], {0: sha()}, 0, {}
    while idx < size:
        (index, width), groups = (idx // 256, min(256, size - idx)), []
        while index or not groups:
            groups, index = [f"{'x' if groups else ''}{index % 1000:03}"] + groups, index // 1000
        place = "/".join(groups) + (f".p/{width}" if width < 256 else "")
        names = [f"tile/{kind}/{place}" for kind in ("entries", "payloads", "0")]
        files, entries, payloads = [bundle / name for name in names], b"", b""
        whole = names[0] in listed and files[0].is_file()
        wrong += [f"{name} is not in the manifest" for name in (names[:2] if whole else names[2:]) if name not in listed]
        if whole:
            entries, payloads = files[0].read_bytes(), files[1].read_bytes()
        missing += [f"the events from {idx} on are not here"] * (not whole)
        for nth in range(width):
            leaf = b"" if whole else files[2].read_bytes()[32 * nth : 32 * nth + 32]
            if whole:
                length = int.from_bytes(entries[:2], "big")
                header, entries = entries[2 : 2 + length], entries[2 + length :]
                length = int.from_bytes(payloads[1:5], "big")
                letter, payload, payloads = payloads[:1], payloads[5 : 5 + length], payloads[5 + length :]
                # The type comes behind the id of 16 bytes; the commitment, 32 bytes, is the last field but one.
                name = header[header.index(b"\xa8event_id\xc4\x10") + 32 :]
                at = header.rindex(b"\xaepayload_commit\xc4\x20") + 17
                if payload if letter in (b"W", b"E") else letter != b"P" or sha(payload[1:]) != header[at : at + 32]:
                    wrong.append(f"event {idx}: the payload is not what the header commits to")
                if letter != b"P" and not (letter == b"W" and name[1 : 1 + name[0] - 0xA0] in INWARD):
                    missing.append(f"event {idx}: its payload is not here, and nothing in the log says why")
                leaf = sha(b"\x00", header)
                # Marks: what the log says that it lacks. The sequence is the first field; bytes of 0xcc to 0xcf are longer numbers.
                if (mark := name[1 : 1 + name[0] - 0xA0]) in (b"parking.parked", b"parking.settled") and letter == b"P":
                    seq = payload[payload.index(b"\xa3seq") + 4 :]
                    seq = int.from_bytes(seq[1 : 1 + 2 ** (seq[0] - 0xCC)], "big") if seq[0] >= 0xCC else seq[0]
                    wrong += [f"event {idx}: a mark that does not fit"] * (parked.get(seq) is not (None if mark == b"parking.parked" else True))
                    parked[seq] = mark == b"parking.parked"
            stack.append((1, leaf))
            while len(stack) > 1 and stack[-2][0] == stack[-1][0]:
                (count, left), (_, right) = stack[-2:]
                stack[-2:] = [(2 * count, sha(b"\x01", left, right))]
            idx += 1
            roots[idx] = root(stack)
        wrong += [f"{place} has more than {width} events"] * bool(entries or payloads)
    parked = {entry["position"].rsplit(":", 1)[1]: True for entry in manifest.get("without", [])} | {str(s): p for s, p in parked.items()}
    missing += [f"message {seq} is parked, and not in the log" for seq, is_parked in parked.items() if is_parked]
    heads = [(bundle / name, wrong) for name in sorted(listed) if name.startswith("checkpoints/")]
    for path, list_ in heads + [(pathlib.Path(path), diverges) for path in known]:
        try:
            if roots.get((head := checkpoint(path.read_text(), origin, public))[0]) != head[1]:
                list_.append(f"{path}: the first {head[0]} events have another root")
        except (ValueError, IndexError) as error:
            wrong.append(f"{path}: {error}")
    wrong += [f"no checkpoint of {size} events"] * (f"checkpoints/{size}" not in listed)
    tables = [name for name in ("events.jsonl", "events.csv", "events.ocsf.jsonl") if (bundle / name).exists()]
    wrong += [f"{name} is not in the manifest" for name in tables if name not in listed]
    print("\n".join(wrong + diverges + missing) or f"{size} events of {origin} are, in tile/, as they were signed")
    if tables:
        print("not compared with the events: " + ", ".join(tables) + " (`orgstream audit verify` does)")
    sys.exit(40 if wrong else 30 if diverges else 20 if missing else 10)
if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (ValueError, KeyError, OSError) as error:
        sys.exit(print(f"cannot be read: {error}") or 40)
