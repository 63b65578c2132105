//! Lists the merges of a vocabulary: as the file has them, or rebuilt from the scores of a SentencePiece vocabulary.
//!
//! In: a vocabulary. Out: pairs of texts in the order in which they are merged. Nothing is written here.

use super::vocabulary::{Kind, Vocabulary};
use crate::error::Error;

/// Two neighbouring texts that become one token.
pub(super) type Merge<'a> = (&'a str, &'a str);

/// The merges of a byte-level vocabulary, from the file.
///
/// Errors: [`Error::Damaged`] when they are missing, one is no pair, or a part or the whole of one is no token.
pub(super) fn listed<'a>(vocabulary: &Vocabulary<'a>) -> Result<Vec<Merge<'a>>, Error> {
    let header = vocabulary.header;
    let key = "tokenizer.ggml.merges";
    let damaged = |detail: String| Error::damaged(header.path(), detail);
    let texts =
        header.metadata.texts(key)?.ok_or_else(|| damaged(format!("metadata key {key:?} is missing")))?;
    let mut merges = Vec::with_capacity(texts.len());
    let mut whole = String::new();
    for text in texts.iter() {
        let (left, right) = pair(text).ok_or_else(|| damaged(format!("its merge {text:?} is no pair")))?;
        whole.clear();
        whole.push_str(left);
        whole.push_str(right);
        if let Some(missing) =
            [left, right, &whole].into_iter().find(|part| !vocabulary.ids.contains_key(part))
        {
            return Err(damaged(format!("its merge {text:?} needs {missing:?}, which is no token")));
        }
        merges.push((left, right));
    }
    Ok(merges)
}

/// The two sides of the first space that is not the first character.
fn pair(text: &str) -> Option<Merge<'_>> {
    let first = text.chars().next()?.len_utf8();
    let space = first + text[first..].find(' ')?;
    Some((&text[..space], &text[space + 1..]))
}

/// The merges that a SentencePiece vocabulary implies: every way to split a token into two tokens, best score first.
///
/// SentencePiece merges whichever neighbours make the token of the highest score; a list sorted by the score of what is
/// made says the same. Splits of one token have one score: the longer left part goes first, because of equals
/// SentencePiece merges the leftmost.
///
/// Errors: [`Error::Damaged`] without scores, with a score that is no number, with a token of more than [`LONGEST`] bytes,
/// and for a vocabulary so repetitive that its merges would be [`MOST_TEXT`] times its size.
pub(super) fn rebuilt<'a>(vocabulary: &Vocabulary<'a>) -> Result<Vec<Merge<'a>>, Error> {
    let damaged = |detail: &str| Error::damaged(vocabulary.header.path(), detail);
    let scores = vocabulary
        .scores
        .as_ref()
        .ok_or_else(|| damaged("metadata key \"tokenizer.ggml.scores\" is missing"))?;
    if scores.iter().any(|score| score.is_nan()) {
        return Err(damaged("a token's score is no number"));
    }
    let mergeable = |id: usize| matches!(vocabulary.kind(id), Kind::Normal | Kind::UserDefined);
    let mut room = MOST_TEXT * vocabulary.texts.iter().map(|text| text.len() + 1).sum::<usize>();
    let mut found: Vec<(u32, u32)> = Vec::new();
    for (id, text) in vocabulary.texts.iter().enumerate().filter(|(id, _)| mergeable(*id)) {
        if text.len() > LONGEST {
            return Err(damaged("a token is longer than any that can be merged"));
        }
        for (split, _) in text.char_indices().skip(1) {
            let part = |text: &str| vocabulary.ids.get(text).is_some_and(|&id| mergeable(id as usize));
            if part(&text[..split]) && part(&text[split..]) {
                room = room
                    .checked_sub(text.len())
                    .ok_or_else(|| damaged("its tokens split in too many ways"))?;
                found.push((id as u32, split as u32));
            }
        }
    }
    found.sort_by(|left, right| {
        let score = |&(id, _): &(u32, u32)| scores[id as usize];
        score(right).total_cmp(&score(left)).then(left.0.cmp(&right.0)).then(right.1.cmp(&left.1))
    });
    Ok(found.into_iter().map(|(id, split)| vocabulary.texts[id as usize].split_at(split as usize)).collect())
}

/// Bounds the time, which grows with a token's length squared. Real tokens stay under 256 bytes.
const LONGEST: usize = 1024;

/// Real vocabularies need about five times their own text.
const MOST_TEXT: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_is_parted_at_its_first_inner_space() {
        assert_eq!(pair("Ġ t"), Some(("Ġ", "t")));
        assert_eq!(pair("  a"), Some((" ", "a")));
        assert_eq!(pair("a b c"), Some(("a", "b c")));
        assert_eq!(pair("ab"), None);
        assert_eq!(pair(" a"), None);
        assert_eq!(pair(""), None);
    }
}
