//! Which keys of a collection are meant, and in which order.
//!
//! Invariant: keys are ordered by their bytes, and a range that ends before it begins has none.

use std::ops::{Bound, RangeBounds};

/// Which keys of a collection are meant: all, those with a prefix, or a range; from the first on, or from the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    from: Bound<String>,
    to: Bound<String>,
    after: Option<String>,
    backwards: bool,
}

impl Keys {
    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self { from: Bound::Unbounded, to: Bound::Unbounded, after: None, backwards: false }
    }

    /// The keys that begin with `prefix`.
    #[must_use]
    pub fn prefix(prefix: &str) -> Self {
        let to = successor(prefix).map_or(Bound::Unbounded, Bound::Excluded);
        Self { from: Bound::Included(prefix.to_owned()), to, ..Self::all() }
    }

    /// The keys in a range, by their bytes: `Keys::range("2026-01".."2026-02")`.
    #[must_use]
    pub fn range<'k>(range: impl RangeBounds<&'k str>) -> Self {
        let owned = |bound: Bound<&&str>| bound.map(|key| (*key).to_owned());
        Self { from: owned(range.start_bound()), to: owned(range.end_bound()), ..Self::all() }
    }

    /// From the last key on.
    #[must_use]
    pub fn backwards(mut self) -> Self {
        self.backwards = true;
        self
    }

    /// Only what comes behind `key`, in the order in which it is read: the way to the next page, from the last key of this one.
    #[must_use]
    pub fn after(mut self, key: &str) -> Self {
        self.after = Some(key.to_owned());
        self
    }

    /// Whether the last key comes first.
    pub(super) fn is_backwards(&self) -> bool {
        self.backwards
    }

    /// The bounds; none if no key can be within.
    pub(super) fn bounds(&self) -> Option<(Bound<&str>, Bound<&str>)> {
        let mut from = self.from.as_ref().map(String::as_str);
        let mut to = self.to.as_ref().map(String::as_str);
        match self.after.as_deref() {
            Some(after) if self.backwards => {
                let is_nearer = edge(to).is_none_or(|edge| after <= edge);
                to = if is_nearer { Bound::Excluded(after) } else { to };
            }
            Some(after) => {
                let is_nearer = edge(from).is_none_or(|edge| after >= edge);
                from = if is_nearer { Bound::Excluded(after) } else { from };
            }
            None => {}
        }
        let is_none = match (from, to) {
            (Bound::Included(from), Bound::Included(to)) => from > to,
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
            (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => {
                from >= to
            }
        };
        (!is_none).then_some((from, to))
    }
}

fn edge(bound: Bound<&str>) -> Option<&str> {
    match bound {
        Bound::Included(key) | Bound::Excluded(key) => Some(key),
        Bound::Unbounded => None,
    }
}

/// The first text behind all that begin with `prefix`; none if there is none.
fn successor(prefix: &str) -> Option<String> {
    let mut rest = prefix.to_owned();
    while let Some(last) = rest.pop() {
        // Between them lie the halves of pairs, which are no characters.
        let next = if last == '\u{d7ff}' { Some('\u{e000}') } else { char::from_u32(last as u32 + 1) };
        if let Some(next) = next {
            rest.push(next);
            return Some(rest);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [&str; 7] = ["", "a", "a/1", "a/2", "a0", "b", "\u{10ffff}"];

    fn picked(keys: &Keys) -> Vec<&'static str> {
        let Some(bounds) = keys.bounds() else { return Vec::new() };
        let within = ALL.into_iter().filter(|key| RangeBounds::<str>::contains(&bounds, *key));
        if keys.is_backwards() { within.rev().collect() } else { within.collect() }
    }

    #[test]
    fn a_prefix_takes_what_begins_with_it_and_nothing_else() {
        assert_eq!(picked(&Keys::prefix("a/")), ["a/1", "a/2"]);
        assert_eq!(picked(&Keys::prefix("a")), ["a", "a/1", "a/2", "a0"]);
        assert_eq!(picked(&Keys::prefix("")), ALL);
        assert_eq!(picked(&Keys::prefix("\u{10ffff}")), ["\u{10ffff}"]);
        assert_eq!(successor("\u{d7ff}").as_deref(), Some("\u{e000}"));
    }

    #[test]
    fn pages_follow_each_other_in_either_order() {
        assert_eq!(picked(&Keys::prefix("a").after("a/1")), ["a/2", "a0"]);
        assert_eq!(picked(&Keys::prefix("a").backwards().after("a/2")), ["a/1", "a"]);
        assert_eq!(picked(&Keys::prefix("a/").after("")), ["a/1", "a/2"], "what is before the range");
        assert_eq!(picked(&Keys::prefix("a/").after("b")), [""; 0], "what is behind the range");
    }

    #[test]
    fn a_range_that_ends_before_it_begins_has_nothing() {
        assert_eq!(picked(&Keys::range("a".."b")), ["a", "a/1", "a/2", "a0"]);
        assert_eq!(picked(&Keys::range("a"..="a")), ["a"]);
        for none in [Keys::range("b".."a"), Keys::range("a".."a")] {
            assert_eq!((picked(&none), none.bounds()), (Vec::new(), None));
        }
    }
}
