//! Where a body ends. Decides nothing about it but that its end is certain.
//!
//! Invariant: after exactly the bytes of one body, the next head begins; chunks are read as strictly as heads.
//!
//! Source: <https://www.rfc-editor.org/rfc/rfc9112>, section 7.1.

use crate::problem::Refusal;

/// The most digits of a chunk's size.
const SIZE_DIGITS_MAX: u8 = 12;
/// The most bytes of extensions and trailers of one body: nobody needs them, and they hide what they are counted as.
const EXTRA_BYTES_MAX: u32 = 16 << 10;

/// How the end of a body is told, and how far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is no body.
    None,
    /// So many bytes are left.
    Length(u64),
    /// Chunks.
    Chunked(Chunks),
}

/// A place within chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunks {
    at: At,
    extra: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Size { value: u64, digits: u8 },
    Extension(u64),
    SizeEnd(u64),
    Content(u64),
    ContentEnd,
    ContentLineFeed,
    TrailerStart,
    Trailer,
    TrailerEnd,
    LastLineFeed,
    End,
}

impl Framing {
    pub(super) fn length(bytes: u64) -> Self {
        if bytes == 0 { Self::None } else { Self::Length(bytes) }
    }

    pub(super) fn chunked() -> Self {
        Self::Chunked(Chunks { at: At::Size { value: 0, digits: 0 }, extra: 0 })
    }

    /// How many of these bytes belong to the body; fewer than all if it ended.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        match self {
            Self::None => Ok(0),
            Self::Length(left) => {
                let taken = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *self = Self::length(*left - taken as u64);
                Ok(taken)
            }
            Self::Chunked(chunks) => {
                let taken = chunks.take(bytes)?;
                if chunks.at == At::End {
                    *self = Self::None;
                }
                Ok(taken)
            }
        }
    }
}

impl Chunks {
    fn take(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let mut taken = 0;
        while taken < bytes.len() && self.at != At::End {
            if let At::Content(left) = self.at {
                let here = (bytes.len() - taken).min(usize::try_from(left).unwrap_or(usize::MAX));
                taken += here;
                let left = left - here as u64;
                self.at = if left == 0 { At::ContentEnd } else { At::Content(left) };
            } else {
                self.at = self.next(bytes[taken]).ok_or(Refusal::Framing)?;
                taken += 1;
            }
        }
        Ok(taken)
    }

    fn next(&mut self, byte: u8) -> Option<At> {
        match (self.at, byte) {
            (At::Size { value, digits }, _) if byte.is_ascii_hexdigit() && digits < SIZE_DIGITS_MAX => {
                let digit = char::from(byte).to_digit(16)?;
                Some(At::Size { value: value * 16 + u64::from(digit), digits: digits + 1 })
            }
            (At::Size { digits: 0, .. }, _) => None,
            (At::Size { value, .. }, b'\r') | (At::Extension(value), b'\r') => Some(At::SizeEnd(value)),
            (At::Size { value, .. }, b';') => Some(At::Extension(value)),
            (At::Extension(value), _) if is_text(byte) => self.extra(At::Extension(value)),
            (At::SizeEnd(0), b'\n') => Some(At::TrailerStart),
            (At::SizeEnd(value), b'\n') => Some(At::Content(value)),
            (At::ContentEnd, b'\r') => Some(At::ContentLineFeed),
            (At::ContentLineFeed, b'\n') => Some(At::Size { value: 0, digits: 0 }),
            (At::TrailerStart, b'\r') => Some(At::LastLineFeed),
            (At::Trailer, b'\r') => Some(At::TrailerEnd),
            (At::TrailerStart | At::Trailer, _) if is_text(byte) => self.extra(At::Trailer),
            (At::TrailerEnd, b'\n') => Some(At::TrailerStart),
            (At::LastLineFeed, b'\n') => Some(At::End),
            _ => None,
        }
    }

    fn extra(&mut self, at: At) -> Option<At> {
        self.extra += 1;
        (self.extra <= EXTRA_BYTES_MAX).then_some(at)
    }
}

fn is_text(byte: u8) -> bool {
    !byte.is_ascii_control() || byte == b'\t'
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn chunks_end_where_their_last_line_does() {
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "5;a=b\r\nhello\r\nA\r\n0123456789\r\n000\r\nX: y\r\n\r\n",
        ] {
            let mut framing = Framing::chunked();
            let text = format!("{body}GET /");
            assert_eq!(framing.take(text.as_bytes()), Ok(body.len()), "{body:?}");
            assert_eq!(framing, Framing::None);
        }
    }

    #[test]
    fn chunks_whose_end_is_uncertain_are_refused() {
        for body in [
            "5\nhello\r\n",
            "+5\r\nhello\r\n",
            "0x5\r\nhello\r\n",
            "\r\n",
            "5\r\nhello0\r\n",
            "5\r\nhello\n0\r\n",
            "5 \r\nhello\r\n",
            "fffffffffffff\r\n",
            "5;a\nb\r\n",
            "0\r\nX: y\n\r\n",
            "-1\r\n",
            "5\r\rhello\r\n",
        ] {
            assert_eq!(Framing::chunked().take(body.as_bytes()), Err(Refusal::Framing), "{body:?}");
        }
        let endless = format!("0\r\n{}", "X: y\r\n".repeat(10_000));
        assert_eq!(Framing::chunked().take(endless.as_bytes()), Err(Refusal::Framing));
    }

    #[test]
    fn a_length_is_counted_down() {
        let mut framing = Framing::length(5);
        assert_eq!(framing.take(b"hel"), Ok(3));
        assert_eq!(framing, Framing::Length(2));
        assert_eq!(framing.take(b"loGET"), Ok(2));
        assert_eq!(framing, Framing::None);
    }

    proptest! {
        #[test]
        fn pieces_are_taken_as_the_whole_is(text in "[0-9a-f;\r\nX:]{0,40}", cut in 0_usize..40) {
            let bytes = text.as_bytes();
            let mut whole = Framing::chunked();
            let expected = whole.take(bytes);
            let mut pieces = Framing::chunked();
            let cut = cut.min(bytes.len());
            let found = pieces.take(&bytes[..cut]).and_then(|first| {
                if first < cut { Ok(first) } else { pieces.take(&bytes[cut..]).map(|second| first + second) }
            });
            prop_assert_eq!(found, expected);
        }
    }
}
