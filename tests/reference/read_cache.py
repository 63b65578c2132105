"""Reads a teacher cache by docs/teacher-cache.md alone, and holds every record against what aludel itself makes of it.

    aludel cache convert CACHE rows.parquet
    python read_cache.py CACHE rows.parquet

A second reader, written from the specification and not from the program: what both have the same of, the specification says. Every checksum is
checked. Prints how many records and rows agree. Not run by CI; needs numpy and pyarrow, and a small cache: it decodes bit by bit.
"""

import hashlib
import json
import math
import struct
import sys
from pathlib import Path

import numpy
import pyarrow.parquet

CRC_TABLE = []
for byte in range(256):
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    CRC_TABLE.append(byte)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


class Probability:
    def __init__(self):
        self.a = self.b = 32768

    def of_one(self):
        return min(max((self.a + self.b) // 4, 32), 32736)

    def learn(self, bit):
        if bit:
            self.a += (65535 - self.a) // 16
            self.b += (65535 - self.b) // 128
        else:
            self.a -= self.a // 16
            self.b -= self.b // 128


class Decoder:
    def __init__(self, data):
        self.data, self.at = data, 5
        self.range, self.code = 2**32 - 1, int.from_bytes(data[:5], "big") & 0xFFFFFFFF

    def fill(self):
        while self.range < 2**24:
            byte = self.data[self.at]
            self.at += 1
            self.range, self.code = self.range << 8, (self.code << 8 | byte) & 0xFFFFFFFF

    def bit(self, probability):
        bound = (self.range >> 15) * probability.of_one()
        bit = self.code < bound
        if bit:
            self.range = bound
        else:
            self.range -= bound
            self.code -= bound
        probability.learn(bit)
        self.fill()
        return int(bit)

    def even_bit(self):
        self.range >>= 1
        bit = self.code >= self.range
        if bit:
            self.code -= self.range
        self.fill()
        return int(bit)

    def number(self, number):
        places = 0
        while places < 31 and self.bit(number.more(places)):
            places += 1
        value, node = 1, 1
        for place in range(places):
            if place < 3:
                digit = self.bit(number.digit(places, node))
                node = 2 * node + digit
            else:
                digit = self.even_bit()
            value = 2 * value + digit
        return value - 1

    def signed(self, number):
        value = self.number(number)
        return -(value + 1) // 2 if value % 2 else value // 2


class Number:
    """The probabilities that a number is coded with."""

    def __init__(self):
        self.known = {}

    def more(self, place):
        return self.known.setdefault(("more", place), Probability())

    def digit(self, places, node):
        return self.known.setdefault((places, node), Probability())


class Sets:
    """Which tokens a row has."""

    def __init__(self):
        self.scores, self.again, self.gaps = {}, {}, {}

    def read(self, decoder, count):
        there = []
        for token in sorted(self.scores):
            score = self.scores[token]
            place = score.bit_length() - 1
            context = 4 * place + (score >> (place - 2) & 3)
            if decoder.bit(self.again.setdefault(context, Probability())):
                there.append(token)
        known = sorted(self.scores)
        start, new = 0, []
        for _ in range(count - len(there)):
            gaps = self.gaps.setdefault((start + 1).bit_length() - 1, Number())
            place = start + decoder.number(gaps)
            start = place + 1
            # The place among all tokens that are not known.
            token = place
            for other in known:
                if other > token:
                    break
                token += 1
            new.append(token)
        self.scores = {token: score - (score + 7) // 8 for token, score in self.scores.items()}
        for token in there:
            self.scores[token] += 8192
        for token in new:
            self.scores[token] = 8192
        self.scores = {token: score for token, score in self.scores.items() if score >= 128}
        return sorted(there + new)


def level(value, resolution):
    if value <= resolution - 4:
        return 2 * math.log(1 - value / resolution)
    return 2 * math.log(4 / resolution) - (value - resolution + 4) / 2


def sparse_rows(header, payload, count):
    decoder, sets = Decoder(payload), Sets()
    numbers = {name: Number() for name in ("count", "floor", "above", "draws", "entropy", "log_sum")}
    tail_numbers = [Number() for _ in header["temperatures"]]
    floor, log_sum, rows = 0, 0, []
    for _ in range(count):
        columns = decoder.number(numbers["count"])
        row = {"token_ids": sets.read(decoder, columns)}
        if "top_k" in header["contents"]:
            resolution, values = header["contents"]["top_k"]["resolution"], []
            if columns:
                floor += decoder.signed(numbers["floor"])
                values = [level(floor - decoder.number(numbers["above"]), resolution) for _ in range(columns)]
            tails = [decoder.number(number) for number in tail_numbers]
            tails = [math.exp(level(tail - 1, resolution)) if tail else 0.0 for tail in tails]
            total = sum(map(math.exp, values)) + tails[0]
            row["log_probs"] = [value - math.log(total) for value in values]
            row["tails"] = [tails[0] / total] + tails[1:]
        else:
            row["counts"] = [decoder.number(numbers["draws"]) + 1 for _ in range(columns)]
            row["entropies"] = decoder.number(numbers["entropy"]) / 1024
        if header["logits"]:
            log_sum += decoder.signed(numbers["log_sum"])
            row["log_sums"] = log_sum / 1024
        rows.append(row)
    assert decoder.at == len(payload) and decoder.code == 0, "the record does not end where its bytes do"
    return rows


def dense_rows(header, payload, count):
    length = len(payload) // max(count, 1)
    rows = []
    for at in range(count):
        row = payload[at * length : (at + 1) * length]
        if "hidden" in header["contents"]:
            factor = struct.unpack_from("<f", row)[0]
            rows.append({"hidden": numpy.frombuffer(row, "<f2", offset=4).astype("f4") * numpy.float32(factor)})
        else:
            scales = struct.unpack_from("<3f", row)
            rows.append(dict(zip(("top", "step", "floor"), scales)) | {"levels": row[12:]})
    return rows


def records(folder):
    header_bytes = (folder / "cache.json").read_bytes()
    header = json.loads(header_bytes)
    if "hidden" in header["contents"]:
        head = (folder / "head.safetensors").read_bytes()
        assert hashlib.sha256(head).hexdigest() == header["contents"]["hidden"]["head"]
    for part in range(1, header["parts"] + 1):
        sequence, is_last = 0, 0
        while not is_last:
            data = (folder / f"part-{part:04}-of-{header['parts']:04}-{sequence:06}.shard").read_bytes()
            assert data[:8] == b"ALUDELSH" and struct.unpack_from("<4I", data, 8) == (1, part, header["parts"], sequence)
            assert data[24:56] == hashlib.sha256(header_bytes).digest()
            assert struct.unpack_from("<I", data, 56)[0] == crc32c(data[:56])
            # Count, rows, offset of the index, whether it is the last; two checksums and four letters.
            count, targets, offset, is_last = struct.unpack_from("<QQQI", data, len(data) - 40)
            index_crc, file_crc = struct.unpack_from("<2I", data, len(data) - 12)
            assert data[-4:] == b"ALEN" and index_crc == crc32c(data[offset:-12]) and file_crc == crc32c(data[:-8])
            for entry in range(count):
                place = struct.unpack_from("<Q", data, offset + 24 * entry + 16)[0]
                row, start, which, rows, check, length, crc = struct.unpack_from("<Q6I", data, place)
                assert data[offset + 24 * entry :][:16] == data[place : place + 16]
                payload = data[place + 32 : place + 32 + length]
                assert crc == crc32c(data[place : place + 28] + payload)
                is_sparse = {"top_k", "sampled"} & header["contents"].keys()
                decode = sparse_rows if is_sparse else dense_rows
                targets -= rows
                yield (("train", "validation")[which], row, start), check, decode(header, payload, rows)
            assert targets == 0, "rows of the shard"
            sequence += 1


def agree(own, exported, name):
    if name == "levels":
        assert bytes(own) == exported
    else:
        assert numpy.allclose(own, exported, rtol=1e-5, atol=1e-6), (name, own, exported)


def main(folder, path):
    exported = {(row["set"], row["row"], row["start"]): row for row in pyarrow.parquet.read_table(path).to_pylist()}
    done = total = 0
    for name, check, rows in records(Path(folder)):
        other = exported.pop(name)
        assert other["check"] == check
        columns = rows[0].keys() if rows else []
        for column in columns:
            values = [row[column] for row in rows]
            if column == "levels":
                agree(b"".join(values), bytes(other[column]) if not isinstance(other[column], list) else b"".join(other[column]), column)
                continue
            assert len(values) == len(other[column]), (name, column)
            for own, theirs in zip(values, other[column]):
                agree(own, theirs, column)
        done, total = done + 1, total + len(rows)
    assert not exported, "the export has more records"
    print(f"{done} records with {total} rows are the same")


if __name__ == "__main__":
    main(*sys.argv[1:])
