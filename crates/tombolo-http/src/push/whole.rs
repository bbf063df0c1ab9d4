//! Whole numbers as JSON has them: 8 and 8.0 are the same. Used for every number that a subscription is told.
//!
//! Invariant: what is no whole number, or does not fit, is refused.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

/// From here on `f64` leaves out whole numbers.
const EXACT_MAX: f64 = (1_u64 << f64::MANTISSA_DIGITS) as f64;

/// A whole number.
#[derive(Debug, Clone, Copy)]
struct Whole<N>(N);

/// Reads one.
pub(super) fn read<'de, D: Deserializer<'de>, N: TryFrom<u64>>(from: D) -> Result<N, D::Error> {
    Whole::deserialize(from).map(|it| it.0)
}

/// Reads one that may be left out; what is there is a number.
pub(super) fn given<'de, D: Deserializer<'de>, N: TryFrom<u64>>(from: D) -> Result<Option<N>, D::Error> {
    read(from).map(Some)
}

impl<'de, N: TryFrom<u64>> Deserialize<'de> for Whole<N> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Reading(PhantomData))
    }
}

struct Reading<N>(PhantomData<N>);

impl<N: TryFrom<u64>> Visitor<'_> for Reading<N> {
    type Value = Whole<N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number of at most {} bits", 8 * size_of::<N>())
    }

    fn visit_u64<E: Error>(self, found: u64) -> Result<Self::Value, E> {
        N::try_from(found).map(Whole).map_err(|_| E::invalid_value(Unexpected::Unsigned(found), &self))
    }

    fn visit_i64<E: Error>(self, found: i64) -> Result<Self::Value, E> {
        match u64::try_from(found) {
            Ok(found) => self.visit_u64(found),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(found), &self)),
        }
    }

    fn visit_f64<E: Error>(self, found: f64) -> Result<Self::Value, E> {
        match found.fract() == 0.0 && (0.0..EXACT_MAX).contains(&found) {
            true => self.visit_u64(found as u64),
            false => Err(E::invalid_value(Unexpected::Float(found), &self)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_whole_or_refused() {
        let read = |text: &str| serde_json::from_str::<Whole<u32>>(text).map(|it| it.0).ok();
        assert_eq!((read("8"), read("8.0"), read("0"), read("-0.0")), (Some(8), Some(8), Some(0), Some(0)));
        for odd in ["-1", "0.5", "4294967296", "1e300", "\"8\"", "null", "true"] {
            assert_eq!(read(odd), None, "{odd}");
        }
    }
}
