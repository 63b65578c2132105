"""Load what aludel makes of models with different tokenizers in transformers, and hold its tokens against the goldens.

In:  the path of the program. Out: one line a case of tests/golden/vocabulary; exit status 1 where weights are missing or left over,
where `vocab_size` is another than the embedding's, or where AutoTokenizer reads a text otherwise than mergekit's output.
Run as `python merged_tokenizers.py target/release/aludel`, with transformers 4 or 5.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "vocabulary"


def check(program: str, case: Path, out: Path) -> str | None:
    command = [program, "merge", case / "recipe.yml", out, "-q"]
    subprocess.run(command, cwd=GOLDEN, check=True)
    expected = json.loads((case / "expected.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in expected["texts"]]
    if ids != expected["ids"]:
        return "texts are read otherwise"
    if len(tokenizer.get_vocab()) != len(expected["tokens"]):
        return f"{len(tokenizer.get_vocab())} tokens"
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    if wrong := {kind: names for kind, names in info.items() if names and kind != "error_msgs"}:
        return str(wrong)
    rows = model.get_input_embeddings().weight.shape[0]
    return None if rows == model.config.vocab_size == expected["vocab_size"] else f"{rows} rows"


def main() -> None:
    program = str(Path(sys.argv[1]).resolve())
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for case in sorted((GOLDEN / "cases").iterdir()):
            wrong = check(program, case, Path(folder) / case.name)
            failed += wrong is not None
            print(f"{case.name}: {wrong or 'the same'}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
