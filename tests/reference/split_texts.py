"""Split the two fetched texts into training and held-out parts.

In:  OUT/packages (Python's documentation sources) and OUT/scripture.raw (one verse a line), as fetch_texts.sh leaves them.
Out: OUT/{technical,scripture}-{train,heldout}.txt, UTF-8. Whole documents are held out, never parts of one: a document of the
documentation is a page, a document of the scripture is a chapter. Prints size and SHA-256 of each file.
Does not shuffle: every document keeps its place, so the parts are the same on every run.
"""

import hashlib
import re
import sys
from pathlib import Path

HELD_OUT_EVERY = 10
VERSE = re.compile(r"^(\d?[A-Za-z]+)(\d+):(\d+) (.*)$")


def main() -> None:
    out = Path(sys.argv[1])
    write_split(out, "technical", documentation_pages(out / "packages"))
    write_split(out, "scripture", chapters(out / "scripture.raw"))


def write_split(out: Path, name: str, documents: list[str]) -> None:
    parts = {"train": [], "heldout": []}
    for index, document in enumerate(documents):
        held_out = index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        parts["heldout" if held_out else "train"].append(document)
    for part, chosen in parts.items():
        data = "\n\n".join(chosen).encode() + b"\n"
        path = out / f"{name}-{part}.txt"
        path.write_bytes(data)
        print(f"{path.name}  {len(chosen)} documents  {len(data)} bytes  sha256 {hashlib.sha256(data).hexdigest()}")


def documentation_pages(packages: Path) -> list[str]:
    library = packages / "usr/share/doc/python3.11/html/_sources/library"
    return [path.read_text(encoding="utf-8").strip() for path in sorted(library.glob("*.rst.txt"))]


def chapters(raw: Path) -> list[str]:
    """Join the verses of a chapter into one paragraph, without their numbers."""
    verses: dict[tuple[str, str], list[str]] = {}
    for line in raw.read_text(encoding="latin-1").splitlines():
        if match := VERSE.match(line.strip()):
            book, chapter, _, verse = match.groups()
            verses.setdefault((book, chapter), []).append(verse.strip())
    return [" ".join(lines) for lines in verses.values()]


if __name__ == "__main__":
    main()
