//! W3C trace context: how one request is followed through every hop.
//!
//! Invariant: what does not parse is dropped as the recommendation says, never passed on.
//! Source: <https://www.w3.org/TR/trace-context/>.

use std::fmt;
use std::str::FromStr;

use rand::Rng;

use crate::{Error, Kind, Result};

/// A `traceparent`, version 00: which trace, which span of it, sampled or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace: u128,
    span: u64,
    flags: u8,
}

impl TraceContext {
    /// Begins a new trace, sampled.
    #[must_use]
    pub fn begin() -> Self {
        let mut random = rand::rng();
        Self { trace: random.random_range(1..=u128::MAX), span: random.random_range(1..=u64::MAX), flags: 1 }
    }

    /// A new span of the same trace.
    #[must_use]
    pub fn child(self) -> Self {
        Self { span: rand::rng().random_range(1..=u64::MAX), ..self }
    }

    /// The trace's id in hexadecimal, as logs and trace viewers show it.
    #[must_use]
    pub fn trace_id(self) -> String {
        format!("{:032x}", self.trace)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

impl FromStr for TraceContext {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::new(
                Kind::InvalidToken,
                format!("traceparent {text:?} is not of the form 00-<32 hex>-<16 hex>-<2 hex>"),
            )
        };
        let parts: Vec<&str> = text.split('-').collect();
        let [version, trace, span, flags] = parts[..] else { return Err(wrong()) };
        let lower_hex = |part: &str, length: usize| {
            part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        if version != "00" || !lower_hex(trace, 32) || !lower_hex(span, 16) || !lower_hex(flags, 2) {
            return Err(wrong());
        }
        let trace = u128::from_str_radix(trace, 16).map_err(|_| wrong())?;
        let span = u64::from_str_radix(span, 16).map_err(|_| wrong())?;
        let flags = u8::from_str_radix(flags, 16).map_err(|_| wrong())?;
        if trace == 0 || span == 0 {
            return Err(wrong());
        }
        Ok(Self { trace, span, flags })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_survives_the_header() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(text.parse::<TraceContext>().unwrap().to_string(), text);
        let begun = TraceContext::begin();
        assert_eq!(begun.to_string().parse::<TraceContext>().unwrap(), begun);
        assert_eq!(begun.child().trace_id(), begun.trace_id());
    }

    #[test]
    fn what_does_not_parse_is_refused() {
        let zero_trace = format!("00-{:032x}-b7ad6b7169203331-01", 0);
        for text in ["", "00", "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", &zero_trace] {
            assert!(text.parse::<TraceContext>().is_err(), "{text}");
        }
    }
}
