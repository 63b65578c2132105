//! Turns what a server says of one token into the row that a cache keeps.
//!
//! In: tokens with log-probabilities, in any order, from anywhere. Out: the k likeliest in ascending order of their ids, with the
//! probability that all others have; or why these are no row. A server may add the token that the text goes on with, however unlikely.

use aludel_cache::SparseRows;

/// One token, and how likely it is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Alternative {
    pub(super) id: u32,
    pub(super) log_p: f64,
    /// The token in words, where the server tells.
    pub(super) text: Option<String>,
}

/// What rows are made for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Tokens of a row.
    pub(super) k: u32,
    /// Columns that are tokens.
    pub(super) vocabulary: u32,
}

/// Servers that cannot write minus infinity write this.
const NOTHING: f64 = -9999.0;

/// What rounding may add to a probability of 1.
const ROUNDING: f64 = 1e-3;

/// What padding may have together before it is no padding.
const PADDING: f64 = 1e-3;

impl Shape {
    /// Appends the row of a token. `next` is the token that the text goes on with.
    pub(super) fn append(self, rows: &mut SparseRows, said: &[Alternative], next: u32) -> Result<(), String> {
        let (k, most) = (self.k as usize, self.vocabulary as usize);
        if !(k.min(most)..=k + 1).contains(&said.len()) {
            return Err(format!("it says {} tokens where {k} were asked for", said.len()));
        }
        let mut found: Vec<(u32, f64)> = Vec::with_capacity(said.len());
        for &Alternative { id, log_p, .. } in said {
            if !log_p.is_finite() || log_p > ROUNDING {
                return Err(format!("{log_p} is no log-probability (token {id})"));
            }
            found.push((id, log_p.min(0.0)));
        }
        // The likeliest first; of equals, the one that stands here only because the text goes on with it last.
        found.sort_unstable_by(|a, b| {
            b.1.total_cmp(&a.1).then((a.0 == next).cmp(&(b.0 == next))).then(a.0.cmp(&b.0))
        });
        found.truncate(k);
        let beyond: f64 = found.iter().filter(|(id, _)| *id >= self.vocabulary).map(|(_, x)| x.exp()).sum();
        if beyond > PADDING {
            return Err(format!(
                "tokens from {} on, which the tokenizer does not have, have the probability {beyond:.3}",
                self.vocabulary
            ));
        }
        found.retain(|(id, x)| *id < self.vocabulary && *x > NOTHING);
        found.sort_unstable_by_key(|(id, _)| *id);
        if let Some(pair) = found.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(format!("it says token {} twice", pair[0].0));
        }
        let known: f64 = found.iter().map(|(_, x)| x.exp()).sum();
        if found.is_empty() || known > 1.0 + ROUNDING {
            return Err(format!("its probabilities sum to {known:.4}"));
        }
        // As of a teacher that runs here: the difference of sums near 1 has no digits below this.
        let tail = if found.len() == most { 0.0 } else { (1.0 - known).max(1e-7) };
        rows.ids.extend(found.iter().map(|(id, _)| *id));
        rows.log_p.extend(found.iter().map(|(_, x)| *x as f32));
        rows.ends.push(rows.ids.len());
        rows.tails.push(tail as f32);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(pairs: &[(u32, f64)]) -> Vec<Alternative> {
        pairs.iter().map(|&(id, p)| Alternative { id, log_p: p.ln(), text: None }).collect()
    }

    fn row(shape: Shape, said: &[Alternative], next: u32) -> Result<(Vec<u32>, f32), String> {
        let mut rows = SparseRows::default();
        shape.append(&mut rows, said, next)?;
        assert_eq!((rows.ends.as_slice(), rows.log_p.len()), (&[rows.ids.len()][..], rows.ids.len()));
        Ok((rows.ids, rows.tails[0]))
    }

    const SHAPE: Shape = Shape { k: 2, vocabulary: 10 };

    #[test]
    fn the_likeliest_are_kept_and_the_token_of_the_text_is_not_one_of_them_by_itself() {
        let expected = Ok((vec![3, 7], 0.25));
        assert_eq!(row(SHAPE, &said(&[(7, 0.25), (3, 0.5)]), 3), expected);
        assert_eq!(row(SHAPE, &said(&[(1, 0.125), (7, 0.25), (3, 0.5)]), 1), expected);
        assert_eq!(row(SHAPE, &said(&[(1, 0.25), (7, 0.25), (3, 0.5)]), 1), expected, "a tie");
        assert_eq!(
            row(SHAPE, &said(&[(3, 0.5), (7, 0.25), (1, 0.125)]), 3),
            expected,
            "a server that adds another"
        );
    }

    #[test]
    fn columns_beyond_the_tokens_are_padding_or_another_model() {
        assert_eq!(row(SHAPE, &said(&[(3, 0.9375), (12, 1e-6)]), 3), Ok((vec![3], 0.0625)));
        let error = row(SHAPE, &said(&[(3, 0.5), (12, 0.25)]), 3).unwrap_err();
        assert!(error.contains("from 10 on"), "{error}");
    }

    #[test]
    fn a_row_of_all_tokens_has_no_rest() {
        let shape = Shape { k: 5, vocabulary: 2 };
        assert_eq!(row(shape, &said(&[(1, 0.75), (0, 0.25)]), 0), Ok((vec![0, 1], 0.0)));
    }

    #[test]
    fn a_certain_token_leaves_the_least_rest_that_has_digits() {
        let mut certain = said(&[(3, 1.0), (7, 0.5)]);
        certain[1].log_p = NOTHING;
        assert_eq!(row(SHAPE, &certain, 3), Ok((vec![3], 1e-7)));
    }

    #[test]
    fn what_is_no_row_is_refused() {
        for (pairs, reason) in [
            (&[(3, 0.5)][..], "1 tokens where 2"),
            (&[(1, 0.1), (2, 0.1), (3, 0.1), (4, 0.1)], "4 tokens where 2"),
            (&[(3, 0.5), (3, 0.25)], "token 3 twice"),
            (&[(3, 0.75), (4, 0.75)], "sum to 1.5"),
            (&[(3, 2.0), (4, 0.1)], "no log-probability"),
            (&[(3, 0.0), (4, 0.1)], "-inf is no log-probability"),
            (&[(3, f64::NAN), (4, 0.1)], "NaN is no log-probability"),
        ] {
            let error = row(SHAPE, &said(pairs), 3).unwrap_err();
            assert!(error.contains(reason), "{reason}: {error}");
        }
    }

    proptest! {
        #[test]
        fn anything_leads_to_a_row_or_a_reason(
            said in prop::collection::vec((any::<u32>(), any::<f64>()), 0..6),
            (k, vocabulary) in (1u32..6, 1u32..20),
        ) {
            let said: Vec<Alternative> =
                said.into_iter().map(|(id, log_p)| Alternative { id: id % 24, log_p, text: None }).collect();
            if let Ok((ids, tail)) = row(Shape { k, vocabulary }, &said, 1) {
                prop_assert!(ids.is_sorted() && ids.len() <= k as usize && ids.iter().all(|id| *id < vocabulary));
                prop_assert!((0.0..=1.0).contains(&tail));
            }
        }
    }
}
