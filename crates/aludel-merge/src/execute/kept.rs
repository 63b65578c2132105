//! Decides which pages of the inputs stay mapped between the passes over a tensor.
//!
//! In: what the sweeps of a step pass. Out: whether those pages stay, from the first element on while there is room; the
//! sweep that writes makes room again. What is kept never changes what is computed.

use std::ops::Range;

/// Bytes kept mapped, over all steps under way.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Room {
    taken: u64,
}

/// The elements of one step, from the first, whose pages stay mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    end: u64,
}

impl Kept {
    pub(super) const fn elements(self) -> u64 {
        self.end
    }

    /// A sweep that will be followed by another has passed these elements, of `width` bytes each; whether their pages stay:
    /// they do where they were kept before, or follow what is kept and fit into `limit` bytes with it.
    pub(super) fn pass(&mut self, elements: &Range<u64>, width: u64, room: &mut Room, limit: u64) -> bool {
        if elements.end <= self.end {
            return true;
        }
        let bytes = (elements.end - self.end) * width;
        let fits = elements.start <= self.end && room.taken + bytes <= limit;
        if fits {
            room.taken += bytes;
            self.end = elements.end;
        }
        fits
    }

    /// The last sweep has passed these elements: their pages go.
    pub(super) fn leave(self, elements: &Range<u64>, width: u64, room: &mut Room) {
        room.taken -= (elements.end.min(self.end) - elements.start.min(self.end)) * width;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_of_the_tensor_is_kept_and_given_back() {
        let (mut room, mut kept) = (Room::default(), Kept::default());
        let passed = [0..100, 100..100, 100..300, 300..400];
        // 2 bytes an element, 650 bytes: the last part does not fit.
        let stays = passed.clone().map(|elements| kept.pass(&elements, 2, &mut room, 650));
        assert_eq!(stays, [true, true, true, false]);
        assert_eq!((kept.elements(), room.taken), (300, 600));
        // Another sweep over the same tensor keeps the same and takes nothing more.
        let stays = passed.map(|elements| kept.pass(&elements, 2, &mut room, 650));
        assert_eq!((stays, room.taken), ([true, true, true, false], 600));
        // Another step finds room for what is left only.
        let mut other = Kept::default();
        assert!(!other.pass(&(0..30), 2, &mut room, 650));
        assert!(other.pass(&(0..25), 2, &mut room, 650));
        for elements in [0..150, 150..350, 350..400] {
            kept.leave(&elements, 2, &mut room);
        }
        assert_eq!(room.taken, 50);
        other.leave(&(0..400), 2, &mut room);
        assert_eq!(room, Room::default());
    }

    #[test]
    fn nothing_is_kept_after_a_gap() {
        let (mut room, mut kept) = (Room::default(), Kept::default());
        assert!(!kept.pass(&(0..100), 2, &mut room, 100));
        assert!(!kept.pass(&(100..110), 2, &mut room, 100));
        assert_eq!(kept.elements(), 0);
    }
}
