//! Makes the row of a token of the rows of the pieces that its text is cut into.
//!
//! In: meanings, and what cuts text. Out: combinations of rows. Where what cuts text does not give it back (it may put a blank before it), or
//! cannot read it as it is no text, pieces are the longest ones that fit, from the left.

use std::collections::HashMap;

use aludel_kernels::pursuit::Combination;

use super::super::vocabulary::TableKind;
use super::PieceWeights;
use super::texts::{Meaning, Meanings};
use crate::problem::Problem;

/// Cuts the texts of a tokenizer's tokens into those of another.
pub(super) struct Cutting<'a> {
    model: &'a Meanings,
    by_id: HashMap<u32, &'a Meaning>,
    cut: &'a dyn Fn(&str) -> Result<Vec<u32>, String>,
    /// Bytes of the longest piece.
    longest: usize,
}

impl<'a> Cutting<'a> {
    pub(super) fn new(model: &'a Meanings, cut: &'a dyn Fn(&str) -> Result<Vec<u32>, String>) -> Self {
        let by_id = model.tokens.iter().map(|(id, meaning)| (*id, meaning)).collect();
        let longest = model.texts.keys().map(Vec::len).max().unwrap_or(0);
        Self { model, by_id, cut, longest }
    }

    /// The pieces of a token; none where there are bytes that no piece has.
    ///
    /// # Errors
    /// What keeps text from being cut.
    pub(super) fn pieces(&self, meaning: &Meaning) -> Result<Vec<u32>, Problem> {
        let text = bytes(meaning);
        if let Ok(text) = std::str::from_utf8(&text) {
            let pieces = (self.cut)(text).map_err(Problem::general)?;
            let known: Option<Vec<Vec<u8>>> =
                pieces.iter().map(|piece| Some(bytes(self.by_id.get(piece)?))).collect();
            if known.is_some_and(|known| known.concat() == text.as_bytes()) {
                return Ok(pieces);
            }
        }
        Ok(self.longest_pieces(&text).unwrap_or_default())
    }

    fn longest_pieces(&self, mut text: &[u8]) -> Option<Vec<u32>> {
        let mut pieces = Vec::new();
        while !text.is_empty() {
            let lengths = (1..=text.len().min(self.longest)).rev();
            let (length, piece) = lengths
                .into_iter()
                .find_map(|length| Some((length, *self.model.texts.get(&text[..length])?)))?;
            pieces.push(piece);
            text = &text[length..];
        }
        Some(pieces)
    }
}

impl PieceWeights {
    /// The combination that a table of this kind has for such pieces.
    pub(super) fn combination(self, pieces: &[u32], kind: TableKind) -> Combination {
        let count = pieces.len() as f64;
        let is_embedding = kind == TableKind::Embedding;
        let weight = |place: usize| match self {
            Self::Mean => 1.0 / count,
            Self::Sum => 1.0,
            Self::Weighted => {
                let rank = if is_embedding { place + 1 } else { pieces.len() - place };
                rank as f64 / (count * (count + 1.0) / 2.0)
            }
            Self::FirstLast => {
                let chosen = if is_embedding { pieces.len() - 1 } else { 0 };
                f64::from(u8::from(place == chosen))
            }
        };
        let weighed = pieces.iter().enumerate().map(|(place, piece)| (*piece, weight(place)));
        weighed.filter(|(_, weight)| *weight != 0.0).collect()
    }
}

fn bytes(meaning: &Meaning) -> Vec<u8> {
    match meaning {
        Meaning::Text(text) => text.clone(),
        Meaning::Byte(byte) => vec![*byte],
        Meaning::Added { content, .. } => content.clone().into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_weighed_for_what_a_table_does_with_them() {
        use TableKind::{Embedding, Head};
        let weights = |weights: PieceWeights, kind| weights.combination(&[4, 7, 9], kind);
        let third = 1.0 / 3.0;
        assert_eq!(weights(PieceWeights::Mean, Head), [(4, third), (7, third), (9, third)]);
        assert_eq!(weights(PieceWeights::Sum, Embedding), [(4, 1.0), (7, 1.0), (9, 1.0)]);
        assert_eq!(weights(PieceWeights::Weighted, Embedding), [(4, 1.0 / 6.0), (7, third), (9, 0.5)]);
        assert_eq!(weights(PieceWeights::Weighted, Head), [(4, 0.5), (7, third), (9, 1.0 / 6.0)]);
        assert_eq!(weights(PieceWeights::FirstLast, Embedding), [(9, 1.0)]);
        assert_eq!(weights(PieceWeights::FirstLast, Head), [(4, 1.0)]);
        assert_eq!(PieceWeights::Mean.combination(&[], Head), []);
    }

    #[test]
    fn what_is_not_given_back_is_cut_into_the_longest_pieces() {
        let texts = [" in", "in", "i", "n", "g", " "];
        let tokens: Vec<(u32, Meaning)> =
            (0..).zip(texts).map(|(id, text)| (id, Meaning::Text(text.into()))).collect();
        let model = Meanings {
            texts: tokens.iter().map(|(id, meaning)| (bytes(meaning), *id)).collect(),
            tokens,
            bytes: HashMap::new(),
            added: HashMap::new(),
            roles: Vec::new(),
        };
        // Puts a blank before every text, as some tokenizers do.
        let cut = |text: &str| Ok(if text == "in" { vec![0] } else { vec![2, 3, 4] });
        let cutting = Cutting::new(&model, &cut);
        let pieces = |text: &[u8]| cutting.pieces(&Meaning::Text(text.to_vec())).unwrap();
        assert_eq!(pieces(b"in"), [1]);
        assert_eq!(pieces(b"ing"), [2, 3, 4], "as it is cut, not the longest");
        assert_eq!(pieces(b"gin"), [4, 1]);
        assert!(pieces(b"x").is_empty());
        assert!(pieces(&[0xff]).is_empty());
    }
}
