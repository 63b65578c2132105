//! Cuts a long document into windows such that every token is predicted once, from as much context as there is room for.
//!
//! In: the length of a document, the length of a window and a stride. Out: windows, each with the tokens that are counted
//! in it. The first window counts all of its predictions; each further one begins `stride` tokens later and counts only
//! what was not counted before, so that from the second window on every prediction has at least `window - stride` tokens
//! of context.

use std::ops::Range;

use aludel_kernels::loss::IGNORED;

/// A part of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its tokens.
    pub tokens: Range<usize>,
    /// Those of them that are predicted and counted, each from the tokens of the window before it.
    pub counted: Range<usize>,
}

impl Window {
    /// For each of its tokens the one that follows and is counted, or [`IGNORED`].
    pub fn labels(&self, document: &[u32]) -> Vec<u32> {
        let label = |next: usize| if self.counted.contains(&next) { document[next] } else { IGNORED };
        self.tokens.clone().map(|token| label(token + 1)).collect()
    }
}

/// The windows of a document of `length` tokens. `window` is at least 2; `stride` is taken to be within `1..window`: the
/// first token of a window has nothing to be predicted from, so windows overlap by one token at least.
///
/// A document of fewer than two tokens has none.
pub fn windows(length: usize, window: usize, stride: usize) -> impl Iterator<Item = Window> {
    let window = window.max(2);
    let stride = stride.clamp(1, window - 1);
    let mut start = 0;
    let mut counted = 1;
    std::iter::from_fn(move || {
        if counted >= length {
            return None;
        }
        let end = length.min(start + window);
        let next = Window { tokens: start..end, counted: counted..end };
        (start, counted) = (start + stride, end);
        Some(next)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(length: usize, window: usize, stride: usize) -> Vec<(Range<usize>, Range<usize>)> {
        windows(length, window, stride).map(|window| (window.tokens, window.counted)).collect()
    }

    #[test]
    fn windows_overlap_by_what_the_stride_leaves() {
        assert_eq!(all(10, 4, 2), [(0..4, 1..4), (2..6, 4..6), (4..8, 6..8), (6..10, 8..10)]);
        assert_eq!(all(9, 4, 3), [(0..4, 1..4), (3..7, 4..7), (6..9, 7..9)]);
        assert_eq!(all(3, 4, 2), [(0..3, 1..3)]);
    }

    #[test]
    fn labels_are_the_tokens_that_follow_and_count() {
        let window = windows(6, 4, 2).nth(1).unwrap();
        assert_eq!(window, Window { tokens: 2..6, counted: 4..6 });
        assert_eq!(window.labels(&[10, 11, 12, 13, 14, 15]), [IGNORED, 14, 15, IGNORED]);
    }

    #[test]
    fn every_token_but_the_first_is_counted_once_and_inside_its_window() {
        for length in 0..30 {
            for window in 0..8 {
                for stride in 0..10 {
                    let mut counted = Vec::new();
                    for (tokens, range) in all(length, window, stride) {
                        assert!(tokens.len() <= window.max(2) && tokens.end <= length);
                        assert!(range.start > tokens.start && range.end == tokens.end && !range.is_empty());
                        counted.extend(range);
                    }
                    let expected: Vec<usize> = (1..length).collect();
                    assert_eq!(counted, expected, "{length} {window} {stride}");
                }
            }
        }
    }
}
