//! Knows how byte-level vocabularies split text into words before merging, by the name that GGUF gives each way.
//!
//! A table of names and patterns. The patterns are those of the models' own tokenizer.json files, as public facts about
//! them. A name that is not listed is refused, because a wrong split gives plausible but wrong tokens.

use serde_json::{Value, json};

/// How a family of tokenizers prepares text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Splitting {
    split: Split,
    /// Whether text is brought into Unicode's composed form first.
    composes: bool,
    /// Whether a word that is a token as a whole is taken as it is, whatever the merges say.
    pub(super) ignores_merges: bool,
    /// Whether a text begins with the beginning-of-text token where the file does not say.
    pub(super) adds_bos: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Split {
    /// GPT-2's pattern, which the byte-level pre-tokenizer has built in.
    Gpt2,
    /// Every digit by itself, then GPT-2's pattern.
    DigitsThenGpt2,
    /// A pattern of the family's own.
    Pattern(&'static str),
}

/// The splitting of this name; `None` for a name that is not listed.
pub(super) fn find(name: &str) -> Option<Splitting> {
    SPLITTINGS.iter().find(|(names, _)| names.contains(&name)).map(|(_, splitting)| *splitting)
}

/// What stands in for a file that does not name its splitting.
pub(super) const UNNAMED: Splitting = GPT2;

impl Splitting {
    /// The `normalizer` of tokenizer.json.
    pub(super) fn normalizer(self) -> Value {
        if self.composes { json!({ "type": "NFC" }) } else { Value::Null }
    }

    /// The `pre_tokenizer` of tokenizer.json.
    pub(super) fn pre_tokenizer(self) -> Value {
        match self.split {
            Split::Gpt2 => byte_level(true),
            Split::DigitsThenGpt2 => {
                let digits = json!({ "type": "Digits", "individual_digits": true });
                json!({ "type": "Sequence", "pretokenizers": [digits, byte_level(true)] })
            }
            Split::Pattern(pattern) => {
                let split = json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
                json!({ "type": "Sequence", "pretokenizers": [split, byte_level(false)] })
            }
        }
    }
}

/// The step that writes bytes as letters; `splits` says whether it applies GPT-2's pattern before.
pub(super) fn byte_level(splits: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": splits })
}

const GPT2: Splitting =
    Splitting { split: Split::Gpt2, composes: false, ignores_merges: false, adds_bos: false };
const DIGITS: Splitting = Splitting { split: Split::DigitsThenGpt2, ..GPT2 };

const SPLITTINGS: [(&[&str], Splitting); 9] = [
    (&["gpt-2", "phi-2", "granite-docling"], GPT2),
    (&["olmo", "mpt"], Splitting { composes: true, ..GPT2 }),
    (&["smollm", "starcoder", "refact", "codeshell"], DIGITS),
    (&["command-r"], Splitting { composes: true, ..DIGITS }),
    (
        &["llama-bpe", "llama3", "llama-v3"],
        Splitting { split: Split::Pattern(LLAMA3), ignores_merges: true, adds_bos: true, ..GPT2 },
    ),
    (&["smaug-bpe", "dbrx"], Splitting { split: Split::Pattern(LLAMA3), ..GPT2 }),
    (
        &["qwen2", "deepseek-r1-qwen", "megrez"],
        Splitting { split: Split::Pattern(QWEN2), composes: true, ..GPT2 },
    ),
    (&["tekken"], Splitting { split: Split::Pattern(TEKKEN), ignores_merges: true, adds_bos: true, ..GPT2 }),
    (&["gpt-4o"], Splitting { split: Split::Pattern(GPT4O), ..GPT2 }),
];

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smollm_takes_digits_one_by_one() {
        let json = find("smollm").unwrap().pre_tokenizer();
        assert_eq!(json["pretokenizers"][0]["individual_digits"], true);
        assert_eq!(json["pretokenizers"][1]["use_regex"], true);
        assert_eq!(find("smollm").unwrap().normalizer(), Value::Null);
    }

    #[test]
    fn a_pattern_replaces_the_built_in_one() {
        let json = find("llama-bpe").unwrap().pre_tokenizer();
        assert_eq!(json["pretokenizers"][0]["pattern"]["Regex"], LLAMA3);
        assert_eq!(json["pretokenizers"][1]["use_regex"], false);
    }

    #[test]
    fn names_are_listed_once_and_others_not_at_all() {
        let names: Vec<&str> = SPLITTINGS.iter().flat_map(|(names, _)| names.iter().copied()).collect();
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), names.len());
        assert_eq!(find("deepseek-v3"), None);
        assert_eq!(find(""), None);
    }
}
