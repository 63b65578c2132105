//! Finds for each token of a tokenizer the token of another that stands for the same.
//!
//! In: the meanings of both. Out: an [`Assignment`]. Tokens that are added to a vocabulary are the same where they are written alike, or have the
//! same role (`bos_token`); pieces of text where their bytes are the same. What else counts is up to who asks.

use super::Alike;
use super::texts::{Meaning, Meanings};

/// The tokens of a donor, and those of a model that stand for the same.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Assignment {
    /// The donor's token and the model's, in the order of the donor's.
    pub same: Vec<(u32, u32)>,
    /// A character and the byte of it.
    pub bytes: Vec<(u32, u32)>,
    /// The longest beginning that is a token.
    pub prefixes: Vec<(u32, u32)>,
    /// Tokens of the donor that the model has none for.
    pub new: Vec<u32>,
}

impl Assignment {
    pub(super) fn of(donor: &Meanings, model: &Meanings, alike: Alike) -> Self {
        let mut assignment = Self::default();
        for (id, meaning) in &donor.tokens {
            let (to, own) = if let Some(own) = same(donor, model, *id, meaning) {
                (&mut assignment.same, own)
            } else if let Some(own) = byte(model, meaning).filter(|_| alike.byte) {
                (&mut assignment.bytes, own)
            } else if let Some(own) = prefix(model, meaning).filter(|_| alike.prefix) {
                (&mut assignment.prefixes, own)
            } else {
                assignment.new.push(*id);
                continue;
            };
            to.push((*id, own));
        }
        assignment
    }
}

fn same(donor: &Meanings, model: &Meanings, id: u32, meaning: &Meaning) -> Option<u32> {
    match meaning {
        Meaning::Text(text) => model.texts.get(text).copied(),
        Meaning::Byte(byte) => {
            // Where the donor has no other piece for it, this is the one that its text is cut into.
            let is_text = donor.texts.get([*byte].as_slice()) == Some(&id);
            let text = || model.texts.get([*byte].as_slice()).filter(|_| is_text);
            model.bytes.get(byte).or_else(text).copied()
        }
        Meaning::Added { content, special } => {
            let text = || model.texts.get(content.as_bytes()).filter(|_| !special);
            let with_role = || {
                let roles = donor.roles.iter().filter(|(_, with_role)| *with_role == id);
                let own = |role: &&(&str, u32)| model.roles.iter().find(|(own, _)| *own == role.0);
                roles.filter_map(|role| own(&role)).map(|(_, own)| own).next()
            };
            model.added.get(content).or_else(text).or_else(with_role).copied()
        }
    }
}

/// A piece for the byte that this one is, or the piece for the text of this byte.
fn byte(model: &Meanings, meaning: &Meaning) -> Option<u32> {
    match meaning {
        Meaning::Byte(byte) => model.texts.get([*byte].as_slice()).copied(),
        Meaning::Text(text) => match text.as_slice() {
            [byte] => model.bytes.get(byte).copied(),
            _ => None,
        },
        Meaning::Added { .. } => None,
    }
}

/// The longest beginning of a text that is a piece and not blank alone.
fn prefix(model: &Meanings, meaning: &Meaning) -> Option<u32> {
    let Meaning::Text(text) = meaning else { return None };
    let is_cut = |end: usize| match std::str::from_utf8(text) {
        Ok(text) => text.is_char_boundary(end),
        Err(_) => true,
    };
    let is_blank = |text: &[u8]| text.iter().all(u8::is_ascii_whitespace);
    let ends = (1..text.len()).rev().filter(|&end| is_cut(end));
    let mut prefixes = ends.map(|end| &text[..end]).take_while(|prefix| !is_blank(prefix));
    prefixes.find_map(|prefix| model.texts.get(prefix).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meanings(tokens: &[(u32, Meaning)], roles: &[(&'static str, u32)]) -> Meanings {
        let mut meanings = Meanings {
            tokens: tokens.to_vec(),
            texts: Default::default(),
            bytes: Default::default(),
            added: Default::default(),
            roles: roles.to_vec(),
        };
        for (id, meaning) in tokens {
            match meaning {
                Meaning::Text(text) => drop(meanings.texts.insert(text.clone(), *id)),
                Meaning::Byte(byte) => drop(meanings.bytes.insert(*byte, *id)),
                Meaning::Added { content, .. } => drop(meanings.added.insert(content.clone(), *id)),
            }
        }
        for (byte, id) in &meanings.bytes {
            meanings.texts.entry(vec![*byte]).or_insert(*id);
        }
        meanings
    }

    fn text(text: &str) -> Meaning {
        Meaning::Text(text.as_bytes().to_vec())
    }

    fn special(content: &str) -> Meaning {
        Meaning::Added { content: content.to_owned(), special: true }
    }

    const EXACTLY: Alike = Alike { prefix: false, byte: false };

    #[test]
    fn tokens_are_the_same_by_text_by_writing_and_by_role() {
        let model = meanings(
            &[
                (0, special("<s>")),
                (1, special("<|im|>")),
                (2, text(" the")),
                (3, text("A")),
                (4, Meaning::Byte(10)),
                (5, Meaning::Byte(65)),
            ],
            &[("bos_token", 0), ("eos_token", 1)],
        );
        let donor = meanings(
            &[
                (0, text(" the")),
                (1, text("\n")),
                (2, text("A")),
                (3, special("<|im|>")),
                (4, special("<begin>")),
                (5, special("<end>")),
                (6, text(" theme")),
            ],
            &[("bos_token", 4), ("eos_token", 5), ("pad_token", 5)],
        );
        let found = Assignment::of(&donor, &model, EXACTLY);
        assert_eq!(found.same, [(0, 2), (1, 4), (2, 3), (3, 1), (4, 0), (5, 1)]);
        assert_eq!(found.new, [6]);
        let found = Assignment::of(&donor, &model, Alike { prefix: true, byte: false });
        assert_eq!((found.prefixes, found.new), (vec![(6, 2)], vec![]));
    }

    #[test]
    fn pieces_of_bytes_are_the_text_of_bytes_only_where_they_are_all_there_is() {
        let model = meanings(&[(0, text("A")), (1, Meaning::Text(vec![0xc3]))], &[]);
        let donor = meanings(&[(0, text("A")), (1, Meaning::Byte(b'A')), (2, Meaning::Byte(0xc3))], &[]);
        let found = Assignment::of(&donor, &model, EXACTLY);
        assert_eq!((found.same, found.new), (vec![(0, 0), (2, 1)], vec![1]));
        let found = Assignment::of(&donor, &model, Alike { prefix: false, byte: true });
        assert_eq!((found.bytes, found.new), (vec![(1, 0)], vec![]));
    }

    #[test]
    fn a_prefix_is_the_longest_one_and_no_blank() {
        let model = meanings(&[(0, text(" ")), (1, text(" t")), (2, text(" th")), (3, text("é"))], &[]);
        let prefix = |text: &str| prefix(&model, &Meaning::Text(text.as_bytes().to_vec()));
        assert_eq!(prefix(" those"), Some(2));
        assert_eq!(prefix(" t"), None, "it is no beginning of itself");
        assert_eq!(prefix(" x"), None);
        assert_eq!(prefix("éa"), Some(3));
        assert_eq!(super::prefix(&model, &special(" t x")), None);
    }
}
