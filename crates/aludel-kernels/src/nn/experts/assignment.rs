//! Sorts the choices of all rows by expert.
//!
//! In: the expert of every choice. Out: slots, those of one expert side by side. Where a row's choices lie can be asked from
//! either side.

use std::ops::Range;

/// Which experts rows chose, and the rows in the order of the experts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// N.
    chosen: usize,
    /// The expert of each choice, `[T, N]`.
    experts: Vec<u32>,
    /// The slot of each choice, `[T, N]`.
    slots: Vec<u32>,
    /// The choice in each slot.
    choices: Vec<u32>,
    /// Where each expert's slots begin, and their end.
    starts: Vec<usize>,
}

impl Assignment {
    /// `experts` is `[T, chosen]`, each below `count`.
    pub(in crate::nn) fn new(experts: Vec<u32>, chosen: usize, count: usize) -> Self {
        let mut starts = vec![0; count + 1];
        for &expert in &experts {
            starts[expert as usize + 1] += 1;
        }
        for expert in 0..count {
            starts[expert + 1] += starts[expert];
        }
        let mut next = starts.clone();
        let (mut slots, mut choices) = (vec![0; experts.len()], vec![0; experts.len()]);
        for (choice, &expert) in experts.iter().enumerate() {
            let slot = &mut next[expert as usize];
            slots[choice] = *slot as u32;
            choices[*slot] = choice as u32;
            *slot += 1;
        }
        Self { chosen, experts, slots, choices, starts }
    }

    /// The expert of each choice, `[T, N]`.
    pub fn experts(&self) -> &[u32] {
        &self.experts
    }

    /// The slots of each expert.
    pub fn groups(&self) -> Vec<Range<usize>> {
        self.starts.windows(2).map(|pair| pair[0]..pair[1]).collect()
    }

    pub(in crate::nn) fn chosen(&self) -> usize {
        self.chosen
    }

    /// The slot of each choice, `[T, N]`.
    pub(in crate::nn) fn slots(&self) -> &[u32] {
        &self.slots
    }

    /// The choice in each slot.
    pub(in crate::nn) fn choices(&self) -> &[u32] {
        &self.choices
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_sorted_by_expert_and_then_by_row() {
        let assignment = Assignment::new(vec![2, 0, 0, 2, 3, 2], 2, 5);
        assert_eq!(assignment.groups(), [0..2, 2..2, 2..5, 5..6, 6..6]);
        assert_eq!(assignment.choices(), [1, 2, 0, 3, 5, 4]);
        assert_eq!(assignment.slots(), [2, 0, 1, 3, 5, 4]);
    }

    #[test]
    fn no_rows_leave_empty_groups() {
        assert_eq!(Assignment::new(vec![], 2, 2).groups(), [0..0, 0..0]);
    }
}
