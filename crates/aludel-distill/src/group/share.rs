//! Shares parameters out among processes, so that each holds the optimizer's state of some (ZeRO, stage 1: Rajbhandari et al. 2020).
//!
//! In: lengths of the parameters. Out: the owner of each. A parameter has one owner: its update is then that of a process which holds everything, to the
//! bit. The price is that the longest one, mostly the embedding, bounds how evenly they are shared.

/// The owner of each parameter: the longest first, each to whoever has least.
pub(crate) fn owners(lens: &[usize], processes: usize) -> Vec<usize> {
    shared_out(lens, processes).0
}

/// The process that owns most elements.
pub(crate) fn fullest(lens: &[usize], processes: usize) -> usize {
    let (_, loads) = shared_out(lens, processes);
    (0..loads.len()).rev().max_by_key(|&owner| loads[owner]).unwrap_or(0)
}

/// The owner of each parameter, and the elements that each process has by that.
fn shared_out(lens: &[usize], processes: usize) -> (Vec<usize>, Vec<u64>) {
    let mut order: Vec<usize> = (0..lens.len()).collect();
    order.sort_by_key(|&place| std::cmp::Reverse(lens[place]));
    let mut owners = vec![0; lens.len()];
    let mut loads = vec![0u64; processes.max(1)];
    for place in order {
        let owner = (0..loads.len()).min_by_key(|&owner| loads[owner]).unwrap_or(0);
        loads[owner] += lens[place] as u64;
        owners[place] = owner;
    }
    (owners, loads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_go_first_to_whoever_has_least() {
        assert_eq!(owners(&[1, 8, 3, 3, 2], 2), [0, 0, 1, 1, 1]);
        assert_eq!((fullest(&[1, 8, 3, 3, 2], 2), fullest(&[8, 7, 3], 2)), (0, 1));
        assert_eq!(owners(&[4, 4, 4], 1), [0, 0, 0]);
        assert_eq!(owners(&[2, 2, 2, 2], 4), [0, 1, 2, 3]);
        assert_eq!((owners(&[], 3), fullest(&[], 3)), (Vec::new(), 0));
        assert_eq!(owners(&[5], 4), [0]);
    }
}
