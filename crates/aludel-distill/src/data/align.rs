//! Finds the rows of a student and of a teacher with other tokens that speak of what follows the same text.
//!
//! In: a row of the data as each of both spells it, with the places in its text where tokens begin. Out: for each row of the student's
//! document, the teacher's row beside it, if there is one. How each spells it is `encode`'s; what is done with the pairs is a loss's.
//!
//! The rule. A token begins at a place, a byte of the text, if no token before it reaches beyond that byte; of several that begin at one
//! place, the first counts. A row of the student and a row of the teacher belong together if the tokens that they predict begin at one
//! place: both have read the text up to there and nothing of what is after it. Where only one of them has a place, its row has no
//! partner: what the other says there is of text that it has partly read, or not read yet. Between two places that both have, tokens are
//! thus compared once as a group, by the distributions before their first. The end of a text is a place.
//!
//! Of a conversation, each of both sees what its own chat template writes. Places are counted from the beginning of each turn of the
//! assistant and are shared as far as both write the same, the place after that included: there each says how the turn ends.

use std::ops::Range;

use aludel_kernels::loss::IGNORED;

use super::encode::Document;

/// Where a token begins: in a turn, or in a text, which is one; and how many bytes after its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) turn: usize,
    pub(super) byte: usize,
}

/// A row of the data as one tokenizer spells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Spelled {
    pub(super) document: Document,
    /// For each row, where the token that it predicts begins. Ascending; empty where nobody asks.
    pub(super) places: Vec<Option<Place>>,
    /// The texts that places are counted in.
    pub(super) turns: Vec<String>,
}

/// A row of the data as a teacher with other tokens reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taught {
    /// The teacher's tokens and labels.
    pub document: Document,
    /// For each row of the student's document, the teacher's row of the same place.
    pub partners: Vec<Option<usize>>,
    /// The length of the pieces that a cache has of the document; a live teacher's are cut as the student's.
    pub pieces: Option<usize>,
}

/// Where each token begins, of tokens that cover these bytes.
pub(super) fn beginnings(spans: &[Range<usize>]) -> Vec<Option<usize>> {
    let mut end = 0;
    let beginning = |span: &Range<usize>| {
        let begins = span.start >= end;
        end = end.max(span.end);
        begins.then_some(span.start)
    };
    spans.iter().map(beginning).collect()
}

impl Taught {
    /// The rows beside each other; `None` where the turns are not as many.
    pub(super) fn of(student: &Spelled, teacher: Spelled, pieces: Option<usize>) -> Option<Self> {
        if student.turns.len() != teacher.turns.len() {
            return None;
        }
        let shared: Vec<usize> =
            student.turns.iter().zip(&teacher.turns).map(|(a, b)| shared_bytes(a, b)).collect();
        let mut rows = learned(&teacher).peekable();
        let mut partners = vec![None; student.document.ids.len()];
        for (row, place) in learned(student).filter(|(_, place)| place.byte <= shared[place.turn]) {
            while rows.next_if(|(_, other)| *other < place).is_some() {}
            partners[row] = rows.next_if(|(_, other)| *other == place).map(|(row, _)| row);
        }
        drop(rows);
        Some(Self { document: teacher.document, partners, pieces })
    }

    /// The pieces of the teacher's document that hold the partners of these rows of the student's. A live teacher's begins where the
    /// student's does, or at the last place before that both have, so that both have read the same.
    pub(super) fn cut(&self, rows: &Range<usize>) -> Vec<Range<usize>> {
        let used = || self.partners[rows.clone()].iter().flatten();
        let (Some(&first), Some(&last)) = (used().next(), used().next_back()) else { return Vec::new() };
        match self.pieces {
            None => {
                let before = self.partners[..rows.start].iter().rev().flatten().next();
                let start = before.map_or(0, |row| row + 1);
                std::iter::once(start..last + 1).collect()
            }
            Some(length) => {
                let is_used = |piece: &Range<usize>| used().any(|row| piece.contains(row));
                let piece = |at: usize| at * length..((at + 1) * length).min(self.document.ids.len());
                (first / length..=last / length).map(piece).filter(is_used).collect()
            }
        }
    }
}

/// The learned rows of a document with their places, the first of each.
fn learned(spelled: &Spelled) -> impl Iterator<Item = (usize, Place)> + '_ {
    let mut last = None;
    let rows = spelled.document.labels.iter().zip(&spelled.places).enumerate();
    rows.filter_map(move |(row, (&label, &place))| {
        let place = place.filter(|place| Some(*place) > last)?;
        last = Some(place);
        (label != IGNORED).then_some((row, place))
    })
}

/// How many bytes two texts begin with alike.
fn shared_bytes(a: &str, b: &str) -> usize {
    a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    /// A document whose tokens after the first begin at these places of one text.
    fn spelled(text: &str, begins: &[Option<usize>], ignored: &[usize]) -> Spelled {
        let label = |row| if ignored.contains(&row) { IGNORED } else { 1 };
        let labels: Vec<u32> = (0..begins.len()).map(label).collect();
        Spelled {
            document: Document { ids: vec![1; begins.len()], labels, ..Document::default() },
            places: begins.iter().map(|byte| byte.map(|byte| Place { turn: 0, byte })).collect(),
            turns: vec![text.to_owned()],
        }
    }

    #[test]
    fn a_token_inside_a_character_begins_nowhere() {
        // "aé" in three tokens, of which two share a character; then one of no bytes, and the last.
        assert_eq!(beginnings(&[0..1, 1..3, 1..3, 3..3, 3..4]), [Some(0), Some(1), None, Some(3), Some(3)]);
        assert_eq!(beginnings(&[]), []);
    }

    #[test]
    fn rows_of_one_place_are_partners() {
        // Places of the student 2 5 - 9 9 12, of the teacher 1 5 7 9 12.
        let student = spelled("x", &[Some(2), Some(5), None, Some(9), Some(9), Some(12)], &[]);
        let teacher = || spelled("x", &[Some(1), Some(5), Some(7), Some(9), Some(12)], &[]);
        let of = |student: &Spelled, teacher: Spelled| Taught::of(student, teacher, None).unwrap().partners;
        // Only "x" is shared, of one byte: nothing after byte 1.
        assert_eq!(of(&student, teacher()), [None; 6]);
        let text = "a text of some length";
        let long = |spelled: Spelled| Spelled { turns: vec![text.to_owned()], ..spelled };
        let student = long(student);
        assert_eq!(of(&student, long(teacher())), [None, Some(1), None, Some(3), None, Some(4)]);
        let other = Spelled { turns: vec!["a text of others".to_owned()], ..teacher() };
        // Alike up to byte 10, of which both have place 9.
        assert_eq!(of(&student, other), [None, Some(1), None, Some(3), None, None]);
        let unlearned = long(spelled("", &[Some(1), Some(5), Some(7), Some(9), Some(12)], &[1]));
        assert_eq!(of(&student, unlearned), [None, None, None, Some(3), None, Some(4)]);
        assert_eq!(Taught::of(&student, Spelled::default(), None), None);
    }

    #[test]
    fn places_go_turn_by_turn() {
        let turn = |turn, byte| Some(Place { turn, byte });
        let of = |places: Vec<Option<Place>>| Spelled {
            document: Document {
                ids: vec![1; places.len()],
                labels: vec![1; places.len()],
                ..Document::default()
            },
            places,
            turns: vec!["yes".to_owned(), "no</s>".to_owned()],
        };
        let student = of(vec![turn(0, 0), turn(0, 3), None, turn(1, 0), turn(1, 2)]);
        let mut teacher = of(vec![None, turn(0, 0), turn(0, 2), turn(1, 0), turn(1, 1), turn(1, 2)]);
        teacher.turns[1] = "no<|end|>".to_owned();
        let taught = Taught::of(&student, teacher, None).unwrap();
        assert_eq!(taught.partners, [Some(1), None, None, Some(3), Some(5)]);
    }

    #[test]
    fn pieces_hold_the_partners() {
        let taught = |pieces| Taught {
            document: Document { ids: vec![1; 10], labels: vec![1; 10], ..Document::default() },
            partners: vec![Some(0), None, Some(3), None, Some(6), Some(8)],
            pieces,
        };
        let live = taught(None);
        assert_eq!(live.cut(&(0..3)).as_slice(), from_ref(&(0..4)));
        // The second piece goes on where the student's last partner was.
        assert_eq!(live.cut(&(3..6)).as_slice(), from_ref(&(4..9)));
        assert!(live.cut(&(3..4)).is_empty());
        let cached = taught(Some(4));
        assert_eq!(cached.cut(&(0..3)).as_slice(), from_ref(&(0..4)));
        assert_eq!(cached.cut(&(3..6)), [4..8, 8..10]);
        assert_eq!(cached.cut(&(0..6)), [0..4, 4..8, 8..10]);
    }
}
