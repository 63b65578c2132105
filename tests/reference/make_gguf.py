"""Makes the GGUF fixtures of aludel-checkpoint's tests, with values and token ids from other implementations.

Needs: gguf, numpy, safetensors, sentencepiece, tokenizers. Run from the repository's root:

    python tests/reference/make_gguf.py crates/aludel-checkpoint/tests/fixtures/gguf

Writes
- blocks.gguf: a llama of three layers whose tensors use every block type that is read; blocks.safetensors: its values
  under Hugging Face names, decoded by the gguf package (Q8_1 and Q8_K, which it does not decode, by their definition);
- byte_level.gguf and sentence_piece.gguf: models with real small tokenizers, trained here on the text below; tokens.json:
  texts and their ids, from the tokenizers and sentencepiece packages that trained them.
"""

import io
import json
import sys
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
import tokenizers
from gguf import GGMLQuantizationType as Q
from safetensors.numpy import save_file

HIDDEN, FEED_FORWARD, HEADS, KEY_HEADS, HEAD, LAYERS = 256, 2, 2, 1, 4, 3
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# The package has the size from before ggml stored this type's scale and sum as half floats.
gguf.GGML_QUANT_SIZES[Q.Q8_1] = (32, 2 + 2 + 32)

TRAINING_TEXT = """The alchemist heats the aludel; the vapour rises, cools and falls as a fine white powder.
In 1789 Lavoisier listed 33 elements. By 1869 Mendeleev had 63, and left gaps where 3 more would be found.
def rise(vapour, degrees=451):
    for step in range(0, degrees, 10):
        vapour = vapour * 1.01 + step / 100
    return vapour
Über Öfen und Öl: straße, naïve café, señor, façade. Двадцать три реторты. 水 銀 と 硫 黄.
It's what they've said, isn't it? We'll see; I'd wait, he's sure, you're not, I'm neither.
"""

TEXTS = [
    "The alchemist heats the aludel.",
    "In 1789 there were 33 elements, 12345 more  than 0.",
    "    for step in range(10):\n        vapour = vapour * 1.01\n\n\n    return 7\n",
    "Öfen, straße, naïve café: двадцать три 水銀と硫黄 🜍 e\u0301",
    "it's they've WE'LL I'D  \t tabs\t\tand \r\n line ends\n 9\n  8 ",
    "<|begin|>The end<|end|> <|begin|>",
    " leading and trailing ",
    "",
]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    make_blocks(folder)
    goldens = {"byte_level": make_byte_level(folder), "sentence_piece": make_sentence_piece(folder)}
    (folder / "tokens.json").write_text(json.dumps(goldens, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


# --- block types


def make_blocks(folder: Path) -> None:
    random = np.random.default_rng(20240229)
    quantised = [Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0, Q.Q8_1, Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K, Q.Q8_K]
    types = iter(quantised + [Q.F16, Q.BF16, Q.Q4_K])
    writer = gguf.GGUFWriter(folder / "blocks.gguf", "llama")
    describe(writer, "blocks", vocabulary=16)
    expected = {}

    def add(name, hugging_face, shape, block, heads=0):
        stored, values = stored_and_decoded(random, shape, block)
        writer.add_tensor(name, stored, raw_dtype=block)
        expected[hugging_face] = np.ascontiguousarray(unpermuted(values, heads) if heads else values)

    add("token_embd.weight", "model.embed_tokens.weight", (16, HIDDEN), Q.Q8_0)
    for layer in range(LAYERS):
        here, there = f"blk.{layer}", f"model.layers.{layer}"
        add(f"{here}.attn_norm.weight", f"{there}.input_layernorm.weight", (HIDDEN,), Q.F32)
        add(f"{here}.attn_q.weight", f"{there}.self_attn.q_proj.weight", (HEADS * HEAD, HIDDEN), next(types), HEADS)
        add(f"{here}.attn_k.weight", f"{there}.self_attn.k_proj.weight", (KEY_HEADS * HEAD, HIDDEN), next(types), KEY_HEADS)
        add(f"{here}.attn_v.weight", f"{there}.self_attn.v_proj.weight", (KEY_HEADS * HEAD, HIDDEN), next(types))
        add(f"{here}.attn_output.weight", f"{there}.self_attn.o_proj.weight", (HIDDEN, HEADS * HEAD), Q.F16)
        add(f"{here}.ffn_norm.weight", f"{there}.post_attention_layernorm.weight", (HIDDEN,), Q.F32)
        add(f"{here}.ffn_gate.weight", f"{there}.mlp.gate_proj.weight", (FEED_FORWARD, HIDDEN), next(types))
        add(f"{here}.ffn_up.weight", f"{there}.mlp.up_proj.weight", (FEED_FORWARD, HIDDEN), next(types))
        add(f"{here}.ffn_down.weight", f"{there}.mlp.down_proj.weight", (HIDDEN, FEED_FORWARD), Q.F16)
    add("output_norm.weight", "model.norm.weight", (HIDDEN,), Q.F32)
    finish(writer)
    save_file(expected, folder / "blocks.safetensors")


def stored_and_decoded(random, shape, block):
    """Bytes of a tensor as stored, and its values."""
    if block in (Q.F32, Q.F16):
        values = random.standard_normal(shape).astype(np.float32 if block == Q.F32 else np.float16)
        return values, values.astype(np.float32)
    if block in (Q.BF16, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0):
        stored = gguf.quants.quantize(random.standard_normal(shape).astype(np.float32), block)
    else:
        stored = random_blocks(random, shape, block)
    if block in (Q.Q8_1, Q.Q8_K):
        return stored, by_definition(stored, shape, block)
    return stored, gguf.quants.dequantize(stored, block).astype(np.float32).reshape(shape)


# Where the scales of a block lie, as (offset, type): everything else of a block is random bits.
SCALES = {
    Q.Q8_1: [(0, np.float16), (2, np.float16)],
    Q.Q2_K: [(80, np.float16), (82, np.float16)],
    Q.Q3_K: [(108, np.float16)],
    Q.Q4_K: [(0, np.float16), (2, np.float16)],
    Q.Q5_K: [(0, np.float16), (2, np.float16)],
    Q.Q6_K: [(208, np.float16)],
    Q.Q8_K: [(0, np.float32)],
}


def random_blocks(random, shape, block):
    elements, size = gguf.GGML_QUANT_SIZES[block]
    blocks = random.integers(0, 256, (int(np.prod(shape)) // elements, size), dtype=np.uint8)
    for offset, kind in SCALES[block]:
        scales = random.uniform(-0.02, 0.02, (len(blocks), 1)).astype(kind)
        blocks[:, offset : offset + scales.itemsize] = scales.view(np.uint8)
    return blocks.reshape(*shape[:-1], shape[-1] // elements * size)


def by_definition(stored, shape, block):
    elements, size = gguf.GGML_QUANT_SIZES[block]
    blocks = np.ascontiguousarray(stored).reshape(-1, size)
    start, kind = (4, np.float16) if block == Q.Q8_1 else (4, np.float32)
    scale = np.ascontiguousarray(blocks[:, : np.dtype(kind).itemsize]).view(kind).astype(np.float32)
    integers = np.ascontiguousarray(blocks[:, start : start + elements]).view(np.int8).astype(np.float32)
    return (scale * integers).reshape(shape)


def unpermuted(values, heads):
    """llama.cpp's converter stores the two halves of a head's rows interleaved."""
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


# --- tokenizers


def make_byte_level(folder: Path) -> list:
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers
    trained.pre_tokenizer = split.Sequence([split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=sorted(split.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator([TRAINING_TEXT] * 3, trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer = gguf.GGUFWriter(folder / "byte_level.gguf", "llama")
    describe(writer, "byte level", vocabulary=len(tokens) + 2)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    padded = tokens + [f"[PAD{len(tokens)}]", f"[PAD{len(tokens) + 1}]"]
    writer.add_token_list(padded)
    writer.add_token_types([CONTROL, CONTROL] + [NORMAL] * (len(tokens) - 2) + [UNUSED, UNUSED])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for message in messages %}<|begin|>{{ message['content'] }}<|end|>{% endfor %}")
    tiny_weights(writer, len(padded))
    finish(writer)
    return [{"text": text, "ids": trained.encode(text).ids} for text in TEXTS]


def make_sentence_piece(folder: Path) -> list:
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING_TEXT.splitlines() * 3),
        model_writer=trained,
        model_type="bpe",
        vocab_size=450,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=0.995,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    ids = range(model.vocab_size())
    kinds = [
        UNKNOWN if model.is_unknown(id) else CONTROL if model.is_control(id) else BYTE if model.is_byte(id) else NORMAL
        for id in ids
    ]
    writer = gguf.GGUFWriter(folder / "sentence_piece.gguf", "llama")
    describe(writer, "sentence piece", vocabulary=len(ids))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([model.id_to_piece(id) for id in ids])
    writer.add_token_scores([model.get_score(id) for id in ids])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(model.bos_id())
    writer.add_eos_token_id(model.eos_id())
    writer.add_unk_token_id(model.unk_id())
    tiny_weights(writer, len(ids))
    finish(writer)
    # The beginning-of-text token is added unless the file says otherwise.
    encode = lambda text: [model.bos_id()] + model.encode(text)
    return [{"text": text, "ids": encode(text)} for text in TEXTS]


def tiny_weights(writer, vocabulary: int) -> None:
    """One layer of hidden size 8: only there so that the file is a model."""
    random = np.random.default_rng(7)
    shapes = {
        "token_embd": (vocabulary, 8),
        "blk.0.attn_norm": (8,),
        "blk.0.attn_q": (8, 8),
        "blk.0.attn_k": (4, 8),
        "blk.0.attn_v": (4, 8),
        "blk.0.attn_output": (8, 8),
        "blk.0.ffn_norm": (8,),
        "blk.0.ffn_gate": (2, 8),
        "blk.0.ffn_up": (2, 8),
        "blk.0.ffn_down": (8, 2),
        "output_norm": (8,),
    }
    for name, shape in shapes.items():
        kind = np.float32 if len(shape) == 1 else np.float16
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape).astype(kind))


def describe(writer, name: str, vocabulary: int) -> None:
    tiny = name != "blocks"
    writer.add_name(name)
    writer.add_block_count(1 if tiny else LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(8 if tiny else HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)


def finish(writer) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
