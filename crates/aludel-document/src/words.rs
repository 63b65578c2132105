//! Finds the known word that an unknown one was meant to be, and writes words into messages.
//!
//! In: a word and the words that would have been right. Out: the nearest of them, or nothing when none is near.

/// The known word nearest to `word`, ignoring case and `-` for `_`; `None` when none is near enough to be meant.
///
/// Near is up to one edit (insertion, deletion, replacement, swap of neighbours) per three letters; failing that, a
/// known word that begins with `word`, as in `base` for `base_model`.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > LONGEST_WORD {
        return None;
    }
    let word = word.to_lowercase().replace('-', "_");
    known
        .into_iter()
        .filter_map(|candidate| Some((distance(&word, candidate)?, candidate)))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Longer words are not compared: the time that takes grows with the product of the lengths.
const LONGEST_WORD: usize = 64;

fn distance(word: &str, candidate: &str) -> Option<usize> {
    let edits = strsim::osa_distance(word, &candidate.to_lowercase());
    let longest = word.len().max(candidate.len());
    let is_start = word.len() >= 3 && candidate.starts_with(word);
    match edits {
        _ if edits <= longest / 3 => Some(edits),
        _ if is_start => Some(LONGEST_WORD + edits),
        _ => None,
    }
}

/// `word` between backquotes, cut after sixty characters, with control characters escaped so that a message cannot
/// steer a terminal.
pub fn quoted(word: &str) -> String {
    const SHOWN: usize = 60;
    let shown: String = word.chars().take(SHOWN).collect();
    let end = if word.chars().nth(SHOWN).is_some() { "…" } else { "" };
    format!("`{}{end}`", visible(shown))
}

/// The text with its control characters escaped.
pub fn visible(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let escaped = |character: char| match character.is_control() {
        true => character.escape_debug().to_string(),
        false => character.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// The words between backquotes, with commas.
pub fn listed<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words.into_iter().map(quoted).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_the_one_that_was_meant() {
        let known = [
            "merge_method",
            "models",
            "slices",
            "modules",
            "base_model",
            "parameters",
            "dtype",
            "out_dtype",
            "tokenizer_source",
            "tokenizer",
            "chat_template",
            "name",
        ];
        for (word, meant) in [
            ("merge_methd", Some("merge_method")),
            ("merge-method", Some("merge_method")),
            ("Models", Some("models")),
            ("model", Some("models")),
            ("base", Some("base_model")),
            ("tokenizer_src", Some("tokenizer_source")),
            ("outdtype", Some("out_dtype")),
            ("paramters", Some("parameters")),
            ("weight", None),
            ("t", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, known), meant, "{word}");
        }
    }

    #[test]
    fn a_swap_of_neighbours_is_one_edit() {
        assert_eq!(nearest("wieght", ["density", "weight"]), Some("weight"));
        assert_eq!(nearest("T", ["t"]), Some("t"));
        assert_eq!(nearest("s", ["t"]), None);
    }

    #[test]
    fn long_words_are_not_compared() {
        assert_eq!(nearest(&"weight".repeat(11), ["weight"]), None);
    }

    #[test]
    fn a_quoted_word_is_short_and_harmless() {
        assert_eq!(quoted("weight"), "`weight`");
        assert_eq!(quoted("a\u{1b}[31m\n"), "`a\\u{1b}[31m\\n`");
        assert_eq!(quoted(&"é".repeat(61)), format!("`{}…`", "é".repeat(60)));
    }
}
