//! Turns token ids with log-probabilities, as other tools store them, into rows of a cache.
//!
//! In: what one position says: ids and values in any order. Out: ascending columns with log-probabilities, and the probability of all other
//! columns at temperature 1. What no distribution can be is refused with what is wrong. Where the numbers come from is not known here.

use aludel_cache::SparseRows;

/// What the numbers of a source are taken for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Every id is below.
    pub(super) vocabulary: u32,
    /// Tokens of a row, at most.
    pub(super) k: u32,
    /// Of more tokens the likeliest are kept; otherwise they are refused.
    pub(super) is_cut: bool,
    /// The values are logits: what is stored is the whole distribution.
    pub(super) are_logits: bool,
    /// How far above 1 the sum of probabilities may lie, and above 0 a log-probability: what coding with loss may do.
    pub(super) slack: f64,
}

/// Log-probabilities as they were computed.
pub(super) const EXACT: f64 = 0.01;

/// Log-probabilities from a fit.
pub(super) const FITTED: f64 = 0.25;

/// The difference of two sums near 1 has no digits below this.
const LEAST_TAIL: f64 = 1e-7;

/// Adds a row.
///
/// # Errors
/// What is wrong with it, as a clause.
pub(super) fn push(rules: &Rules, ids: &[i64], values: &[f64], rows: &mut SparseRows) -> Result<(), String> {
    if ids.len() != values.len() {
        return Err(format!("{} ids beside {} log-probabilities", ids.len(), values.len()));
    }
    let mut known = Vec::with_capacity(ids.len());
    for (&id, &value) in ids.iter().zip(values) {
        if value == f64::NEG_INFINITY {
            continue; // No probability, whatever its id: places that a writer did not fill.
        }
        if !value.is_finite() {
            return Err(format!("the log-probability of token {id} is {value}"));
        }
        match u32::try_from(id) {
            Ok(id) if id < rules.vocabulary => known.push((id, value)),
            _ => {
                let vocabulary = rules.vocabulary;
                return Err(format!(
                    "token {id} is not below the vocabulary, {vocabulary} (`--vocabulary` sets it)"
                ));
            }
        }
    }
    if known.is_empty() {
        return Err("no token has a probability".to_owned());
    }
    if rules.are_logits {
        let most = known.iter().fold(f64::NEG_INFINITY, |most, (_, value)| most.max(*value));
        let sum = most + known.iter().map(|(_, value)| (value - most).exp()).sum::<f64>().ln();
        known.iter_mut().for_each(|(_, value)| *value -= sum);
    }
    check_range(rules, &known)?;
    keep(rules, &mut known)?;
    known.sort_unstable_by_key(|(id, _)| *id);
    if let Some(pair) = known.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(format!("token {} is there twice", pair[0].0));
    }
    let sum: f64 = known.iter().map(|(_, value)| value.min(0.0).exp()).sum();
    if sum > 1.0 + rules.slack {
        return Err(format!("its probabilities sum to {sum:.4}; if they are logits, say so by `--logits`"));
    }
    let is_whole = rules.are_logits || known.len() == rules.vocabulary as usize;
    let tail = if is_whole { 0.0 } else { (1.0 - sum).max(LEAST_TAIL) };
    rows.ids.extend(known.iter().map(|(id, _)| *id));
    rows.log_p.extend(known.iter().map(|(_, value)| value.min(0.0) as f32));
    rows.ends.push(rows.ids.len());
    rows.tails.push(tail as f32);
    Ok(())
}

fn check_range(rules: &Rules, known: &[(u32, f64)]) -> Result<(), String> {
    match known.iter().find(|(_, value)| *value > rules.slack) {
        Some((id, value)) => Err(format!(
            "the log-probability of token {id} is {value}, above 0; if these are logits, say so by `--logits`"
        )),
        None => Ok(()),
    }
}

/// Holds a row to its most tokens; of equal ones the lower id goes first.
fn keep(rules: &Rules, known: &mut Vec<(u32, f64)>) -> Result<(), String> {
    let k = rules.k as usize;
    if known.len() <= k {
        return Ok(());
    }
    if !rules.is_cut {
        return Err(format!(
            "{} tokens, more than the {k} of the first row; give the most by `--k`",
            known.len()
        ));
    }
    known.select_nth_unstable_by(k, |a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    known.truncate(k);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { vocabulary: 10, k: 3, is_cut: false, are_logits: false, slack: EXACT };

    fn row(rules: Rules, ids: &[i64], values: &[f64]) -> Result<SparseRows, String> {
        let mut rows = SparseRows::default();
        push(&rules, ids, values, &mut rows).map(|()| rows)
    }

    #[test]
    fn columns_ascend_and_the_rest_is_the_tail() {
        let half = 0.5f64.ln();
        let rows = row(RULES, &[7, 2, 99], &[half, 2.0 * half, f64::NEG_INFINITY]).unwrap();
        assert_eq!((rows.ids, rows.ends), (vec![2, 7], vec![2]));
        assert_eq!(rows.log_p, [2.0 * half as f32, half as f32]);
        assert_eq!(rows.tails, [0.25]);
        let whole: Vec<i64> = (0..10).collect();
        let rows = row(Rules { k: 10, ..RULES }, &whole, &[0.1f64.ln(); 10]).unwrap();
        assert_eq!(rows.tails, [0.0]);
        assert_eq!(row(RULES, &[1], &[0.0]).unwrap().tails, [1e-7]);
    }

    #[test]
    fn of_more_tokens_the_likeliest_are_kept_when_asked() {
        let values = [-3.0, -1.0, -2.0, -2.0];
        let message = row(RULES, &[1, 2, 3, 4], &values).unwrap_err();
        assert_eq!(message, "4 tokens, more than the 3 of the first row; give the most by `--k`");
        let rows = row(Rules { k: 2, is_cut: true, ..RULES }, &[1, 2, 4, 3], &values).unwrap();
        assert_eq!(rows.ids, [2, 3]);
        assert!((f64::from(rows.tails[0]) - (1.0 - (-1f64).exp() - (-2f64).exp())).abs() < 1e-6);
    }

    #[test]
    fn logits_become_the_whole_distribution() {
        let rules = Rules { are_logits: true, ..RULES };
        let rows = row(rules, &[5, 1], &[11.0, 10.0]).unwrap();
        let p: Vec<f64> = rows.log_p.iter().map(|x| f64::from(*x).exp()).collect();
        assert!((p[0] - 0.268_941).abs() < 1e-5 && (p[1] - 0.731_059).abs() < 1e-5, "{p:?}");
        assert_eq!(rows.tails, [0.0]);
    }

    #[test]
    fn what_is_no_distribution_is_refused_in_words() {
        for (ids, values, message) in [
            (&[1][..], &[-1.0, -2.0][..], "1 ids beside 2 log-probabilities"),
            (&[1], &[f64::NAN], "the log-probability of token 1 is NaN"),
            (&[1], &[f64::INFINITY], "the log-probability of token 1 is inf"),
            (&[10], &[-1.0], "token 10 is not below the vocabulary, 10 (`--vocabulary` sets it)"),
            (&[-1], &[-1.0], "token -1 is not below the vocabulary, 10 (`--vocabulary` sets it)"),
            (&[1, 1], &[-1.0, -2.0], "token 1 is there twice"),
            (&[], &[], "no token has a probability"),
            (&[1], &[f64::NEG_INFINITY], "no token has a probability"),
            (
                &[1],
                &[0.5],
                "the log-probability of token 1 is 0.5, above 0; if these are logits, say so by `--logits`",
            ),
            (
                &[1, 2],
                &[-0.1, -0.1],
                "its probabilities sum to 1.8097; if they are logits, say so by `--logits`",
            ),
        ] {
            assert_eq!(row(RULES, ids, values).unwrap_err(), message);
        }
    }
}
