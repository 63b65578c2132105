//! Names modules as peft finds them.
//!
//! In: names of tensors. Out: what kind of module holds them by their names alone, and the words that name modules in `adapter_config.json`. No
//! code of a model is looked at, so that kinds are those of the usual names.

use std::collections::HashSet;

use aludel_checkpoint::Config;
use indexmap::IndexMap;

/// The module of a tensor, and what the tensor is to it.
pub(super) fn module_of(tensor: &str) -> (&str, &str) {
    tensor.rsplit_once('.').unwrap_or(("", tensor))
}

/// The last word of a module's name.
pub(super) fn last_word(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

/// Whether a module looks rows up: embeddings of tokens, positions and types.
pub(super) fn is_lookup(module: &str) -> bool {
    let word = last_word(module);
    word.contains("emb") || matches!(word, "wte" | "wpe" | "shared" | "relative_attention_bias")
}

/// Whether the weight of a module has its inputs first: GPT-2 and its kin have a class of layers that do.
pub(crate) fn has_inputs_first(module: &str, config: Option<&Config>) -> bool {
    const KINDS: [&str; 4] = ["gpt2", "openai-gpt", "imagegpt", "decision_transformer"];
    let kind = config.and_then(|config| config.value("model_type")).and_then(|kind| kind.as_str());
    kind.is_some_and(|kind| KINDS.contains(&kind))
        && matches!(last_word(module), "c_attn" | "q_attn" | "c_proj" | "c_fc")
}

/// What stands before names in a model with a head and not in a checkpoint that was saved without one: transformers loads both.
pub(super) fn missing_prefix(names: &[&str], config: Option<&Config>) -> &'static str {
    let architecture = config.and_then(Config::architecture).unwrap_or_default();
    let has_head = ["ForCausalLM", "LMHeadModel", "ForSequenceClassification", "ForTokenClassification"]
        .iter()
        .any(|end| architecture.ends_with(end));
    let begins = |word: &str| names.iter().any(|name| name.starts_with(word));
    match has_head {
        true if begins("h.0.") && begins("wte.") => "transformer.",
        true if begins("layers.0.") && begins("embed_tokens.") => "model.",
        _ => "",
    }
}

/// peft's name of what a model is for, where loading an adapter needs it.
pub(super) fn task(config: Option<&Config>) -> Option<String> {
    let architecture = config.and_then(Config::architecture)?;
    let is_causal = ["ForCausalLM", "LMHeadModel"].iter().any(|end| architecture.ends_with(end));
    is_causal.then(|| "CAUSAL_LM".to_owned())
}

/// Words that name exactly these modules among all: the last word of several where all of that word are meant, else the whole name.
/// A word names every module whose name it is or, for `ends`, whose name ends in it.
pub(super) fn words(meant: &[String], all: &[String], ends: Ends) -> Vec<String> {
    let is_meant: HashSet<&str> = meant.iter().map(String::as_str).collect();
    let names = |word: &str, module: &str| match ends {
        Ends::AtDots => module.strip_suffix(word).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
        Ends::Anywhere => module.ends_with(word),
    };
    let mut words: Vec<String> = Vec::new();
    for module in meant {
        let word = last_word(module);
        let is_exact = all.iter().all(|other| !names(word, other) || is_meant.contains(other.as_str()));
        let word = if is_exact { word } else { module };
        if !words.iter().any(|known| known == word) {
            words.push(word.to_owned());
        }
    }
    words
}

/// The rank of most modules, of those that as many have the higher one; and those of the others.
pub(super) fn ranks(of: &IndexMap<String, usize>) -> (usize, Vec<(String, usize)>) {
    let mut counts: IndexMap<usize, usize> = IndexMap::new();
    for &rank in of.values() {
        *counts.entry(rank).or_default() += 1;
    }
    // A rank has to be written where no module has factors too.
    let rank = counts.into_iter().map(|(rank, count)| (count, rank)).max().map_or(1, |(_, rank)| rank);
    let others = of.iter().filter(|&(_, &other)| other != rank);
    (rank, others.map(|(module, &rank)| (module.clone(), rank)).collect())
}

/// How peft holds words against names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    /// `target_modules`: a word ends a name after a dot.
    AtDots,
    /// `modules_to_save`: a word ends a name.
    Anywhere,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn words_name_what_is_meant_and_nothing_else() {
        let all = owned(&["l.0.q", "l.1.q", "l.0.k", "l.1.k", "norm", "l.0.q_norm"]);
        let of = |meant: &[&str], ends| words(&owned(meant), &all, ends);
        assert_eq!(of(&["l.0.q", "l.1.q", "l.0.k"], Ends::AtDots), ["q", "l.0.k"]);
        assert_eq!(of(&["norm"], Ends::AtDots), ["norm"]);
        assert_eq!(
            of(&["l.0.k", "norm", "l.1.k"], Ends::Anywhere),
            ["k", "norm"],
            "`norm` is its whole name"
        );
        assert_eq!(of(&["l.0.q_norm", "norm"], Ends::Anywhere), ["q_norm", "norm"]);
    }

    #[test]
    fn most_modules_need_no_rank_of_their_own() {
        let of = |given: &[usize]| {
            let named = given.iter().enumerate().map(|(at, &rank)| (at.to_string(), rank));
            ranks(&named.collect())
        };
        assert_eq!(of(&[4, 8, 4]), (4, vec![("1".to_owned(), 8)]));
        assert_eq!(of(&[4, 8]), (8, vec![("0".to_owned(), 4)]));
        assert_eq!(of(&[]), (1, vec![]));
    }

    #[test]
    fn kinds_are_told_by_names() {
        assert!(is_lookup("model.embed_tokens") && is_lookup("transformer.wpe") && !is_lookup("lm_head"));
        let config = |text: &str| Config::parse(text, std::path::Path::new("config.json")).unwrap();
        let gpt2 = config(r#"{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}"#);
        assert!(
            has_inputs_first("h.0.attn.c_attn", Some(&gpt2)) && !has_inputs_first("lm_head", Some(&gpt2))
        );
        assert!(!has_inputs_first("h.0.attn.c_attn", None));
        assert_eq!(missing_prefix(&["wte.weight", "h.0.ln_1.weight"], Some(&gpt2)), "transformer.");
        assert_eq!(missing_prefix(&["transformer.wte.weight"], Some(&gpt2)), "");
        assert_eq!(task(Some(&gpt2)).as_deref(), Some("CAUSAL_LM"));
        assert_eq!(task(Some(&config(r#"{"architectures": ["BertModel"]}"#))), None);
    }
}
