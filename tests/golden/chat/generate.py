"""Renders every conversation by every template with transformers, and writes what comes out to cases.json.

    python generate.py            (transformers 5 and jinja2 3.1)

Templates are written in the style of the families that they are named for; smollm2.jinja is SmolLM2's own (Apache 2.0). `now` is
fixed, so that dates are too. Ranges of `{% generation %}` blocks are given in bytes of UTF-8.
"""

import datetime as real
import json
import pathlib

import transformers.utils.chat_template_utils as chat

HERE = pathlib.Path(__file__).parent
NOW = real.datetime(2024, 7, 6, 9, 5, 0)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


class Fixed(real.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


chat.datetime = Fixed


def render(source, conversation, prompt, marks):
    try:
        texts, ranges = chat.render_jinja_template(
            [conversation["messages"]],
            tools=conversation.get("tools"),
            chat_template=source,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=marks,
            **SPECIAL,
        )
    except Exception as error:  # templates raise what they like
        return {"error": str(error).splitlines()[0]}
    result = {"text": texts[0]}
    if marks:
        bytes_before = lambda end: len(texts[0][:end].encode())
        result["spans"] = [[bytes_before(start), bytes_before(end)] for start, end in ranges[0]]
    return result


cases = []
for path in sorted((HERE / "templates").glob("*.jinja")):
    source = path.read_text()
    marks = "endgeneration" in source
    for conversation in json.loads((HERE / "conversations.json").read_text()):
        for prompt in (False, True):
            case = {"template": path.stem, "conversation": conversation["name"], "prompt": prompt}
            cases.append(case | render(source, conversation, prompt, marks))
(HERE / "cases.json").write_text("[\n" + ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases) + "\n]\n")
print(len(cases), "cases,", sum("error" in case for case in cases), "refused")
