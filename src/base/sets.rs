//! Sets and maps of what an iterator has, and the few in order.
//!
//! The standard library's `collect` sorts everything first, and its stable sort is four kilobytes of machine code for each type
//! that is sorted. Ours are of a few devices.

use std::collections::{BTreeMap, BTreeSet};

/// What goes into a set or a map, one after the other.
pub(crate) trait IntoSet: Iterator + Sized {
    /// The set of it.
    fn into_set(self) -> BTreeSet<Self::Item>
    where
        Self::Item: Ord,
    {
        let mut set = BTreeSet::new();
        self.for_each(|item| {
            set.insert(item);
        });
        set
    }

    /// The map of these pairs; the last one counts where a key comes again.
    fn into_map<K: Ord, V>(self) -> BTreeMap<K, V>
    where
        Self: Iterator<Item = (K, V)>,
    {
        let mut map = BTreeMap::new();
        self.for_each(|(key, value)| {
            map.insert(key, value);
        });
        map
    }
}

impl<I: Iterator> IntoSet for I {}

/// These in order of a key, and as they were where it is the same.
pub(crate) fn in_order<T, K: Ord>(items: impl Iterator<Item = T>, key: impl Fn(&T) -> K) -> Vec<T> {
    let mut ordered: Vec<T> = Vec::new();
    for item in items {
        let at = ordered.partition_point(|other| key(other) <= key(&item));
        ordered.insert(at, item);
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_ones_stay_as_they_were() {
        let words = ["ccc", "a", "bb", "dd", "e"];
        assert_eq!(
            in_order(words.into_iter(), |word| word.len()),
            ["a", "e", "bb", "dd", "ccc"]
        );
    }
}
