//! A request's head, line by line, before anybody acts on it.
//!
//! Invariant: a head that passes has one reading: every line ends in CR LF, every name is a token, and it says at most once, in
//! one way, where its body ends.
//!
//! Source: <https://www.rfc-editor.org/rfc/rfc9112>, sections 2.2, 3, 5 and 6.

use super::framing::Framing;
use crate::problem::Refusal;

/// The most headers; the same as hyper's own bound.
const HEADERS_MAX: u32 = 100;
/// The most empty lines before a request, which some old clients send after a body.
const EMPTY_LINES_MAX: u32 = 2;
/// The most digits of a length: more are no length of anything.
const LENGTH_DIGITS_MAX: usize = 18;

/// What was found of a head.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It goes on.
    More,
    /// It ends after so many bytes.
    Whole(usize, Request),
    /// It is not taken.
    Refused(Refusal),
}

/// What comes behind a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    /// How the end of the body is told.
    pub(super) framing: Framing,
    /// Whether it asks for another protocol.
    pub(super) is_upgrade: bool,
}

/// The lines that were read so far.
#[derive(Debug, Default)]
pub(super) struct Head {
    looked: usize,
    line: usize,
    lines: u32,
    empty: u32,
    is_old: bool,
    hosts: u32,
    length: Option<u64>,
    is_chunked: bool,
    is_upgrade: bool,
}

impl Head {
    /// Reads on. `bytes` begins where the head does, and has at least what it had the last time.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Found {
        while let Some(at) = bytes[self.looked..].iter().position(|byte| *byte == b'\n') {
            let end = self.looked + at;
            let Some(line) = bytes[self.line..end].strip_suffix(b"\r") else {
                return Found::Refused(Refusal::Malformed);
            };
            (self.looked, self.line) = (end + 1, end + 1);
            match self.take(line) {
                Ok(false) => {}
                Ok(true) => return self.whole(end + 1),
                Err(refusal) => return Found::Refused(refusal),
            }
        }
        self.looked = bytes.len();
        Found::More
    }

    /// Takes one line; true if it was the last.
    fn take(&mut self, line: &[u8]) -> Result<bool, Refusal> {
        if line.contains(&b'\r') || line.contains(&0) {
            return Err(Refusal::Malformed);
        }
        match (line.is_empty(), self.lines) {
            (true, 0) => {
                self.empty += 1;
                return if self.empty > EMPTY_LINES_MAX { Err(Refusal::Malformed) } else { Ok(false) };
            }
            (true, _) => return Ok(true),
            (false, 0) => self.request_line(line)?,
            (false, _) => self.header(line)?,
        }
        self.lines += 1;
        if self.lines > HEADERS_MAX + 1 { Err(Refusal::HeadTooLarge) } else { Ok(false) }
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), Refusal> {
        let mut parts = line.split(|byte| *byte == b' ');
        let (method, target, version) = (parts.next(), parts.next(), parts.next());
        let is_sound = method.is_some_and(is_token)
            && target.is_some_and(|target| !target.is_empty() && !target.iter().any(u8::is_ascii_control))
            && parts.next().is_none();
        self.is_old = version == Some(b"HTTP/1.0");
        if is_sound && (self.is_old || version == Some(b"HTTP/1.1")) {
            Ok(())
        } else {
            Err(Refusal::Malformed)
        }
    }

    fn header(&mut self, line: &[u8]) -> Result<(), Refusal> {
        let colon = line.iter().position(|byte| *byte == b':').ok_or(Refusal::Malformed)?;
        let (name, value) = (&line[..colon], trimmed(&line[colon + 1..]));
        if !is_token(name) || value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
            return Err(Refusal::Malformed);
        }
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        match name.len() {
            4 if is(b"host") => self.hosts += 1,
            7 if is(b"upgrade") => self.is_upgrade |= value.eq_ignore_ascii_case(b"websocket"),
            14 if is(b"content-length") => self.content_length(value)?,
            17 if is(b"transfer-encoding") => self.transfer_encoding(value)?,
            _ => {}
        }
        Ok(())
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        let is_plain = is_length(value) && self.length.is_none() && !self.is_chunked;
        if !is_plain {
            return Err(Refusal::Framing);
        }
        self.length = Some(value.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')));
        Ok(())
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Refusal> {
        let is_plain = value.eq_ignore_ascii_case(b"chunked")
            && !self.is_chunked
            && self.length.is_none()
            && !self.is_old;
        self.is_chunked = true;
        if is_plain { Ok(()) } else { Err(Refusal::Framing) }
    }

    fn whole(&self, end: usize) -> Found {
        if self.hosts > 1 || self.hosts == 0 && !self.is_old {
            return Found::Refused(Refusal::Malformed);
        }
        let framing = match self.length {
            _ if self.is_chunked => Framing::chunked(),
            Some(length) => Framing::length(length),
            None => Framing::None,
        };
        if self.is_upgrade && framing != Framing::None {
            return Found::Refused(Refusal::EarlyUpgrade);
        }
        Found::Whole(end, Request { framing, is_upgrade: self.is_upgrade })
    }
}

/// Whether it is a length, and that alone.
pub(super) fn is_length(value: &[u8]) -> bool {
    !value.is_empty() && value.len() <= LENGTH_DIGITS_MAX && value.iter().all(u8::is_ascii_digit)
}

/// What surrounds a value: blanks and tabs, and nothing else that ASCII takes for white.
fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Whether it is a token of RFC 9110.
fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Found {
        Head::default().read(text.as_bytes())
    }

    fn refused(text: &str) -> Refusal {
        match read(text) {
            Found::Refused(refusal) => refusal,
            found => panic!("{found:?}: {text:?}"),
        }
    }

    #[test]
    fn a_sound_head_tells_where_its_body_ends() {
        let whole = |text: &str| match read(text) {
            Found::Whole(end, request) => (end, request.framing),
            found => panic!("{found:?}"),
        };
        assert_eq!(whole("GET / HTTP/1.1\r\nHost: a\r\n\r\nrest"), (27, Framing::None));
        assert_eq!(whole("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").1, Framing::None);
        assert_eq!(whole("POST / HTTP/1.1\r\nhost:a\r\nContent-Length: 05 \r\n\r\n").1, Framing::length(5));
        assert_eq!(
            whole("POST / HTTP/1.1\r\nhost:a\r\nTRANSFER-ENCODING: Chunked\r\n\r\n").1,
            Framing::chunked()
        );
        assert_eq!(whole("GET / HTTP/1.0\r\n\r\n").1, Framing::None);
    }

    #[test]
    fn two_readings_of_the_end_are_refused() {
        for headers in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: 5\r\nContent-Length: 5",
            "Content-Length: 5, 5",
            "Content-Length: +5",
            "Content-Length: -5",
            "Content-Length: 0x5",
            "Content-Length:",
            "Content-Length: 5 5",
            "Content-Length: 99999999999999999999",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: \"chunked\"",
        ] {
            assert_eq!(
                refused(&format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n")),
                Refusal::Framing,
                "{headers}"
            );
        }
        assert_eq!(refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Refusal::Framing);
    }

    #[test]
    fn lines_that_can_be_read_in_two_ways_are_refused() {
        for text in [
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: b\rY: c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n Transfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\r\nAccept: a\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1 x\r\nHost: a\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
            "GET /\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: y\x0c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nnothing\r\n\r\n",
            "G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert_eq!(refused(text), Refusal::Malformed, "{text:?}");
        }
    }

    #[test]
    fn an_upgrade_with_a_body_is_refused() {
        let text = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(refused(text), Refusal::EarlyUpgrade);
    }

    #[test]
    fn more_headers_than_the_bound_are_refused() {
        let filler = |count| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(count));
        assert!(matches!(read(&filler(99)), Found::Whole(..)));
        assert_eq!(refused(&filler(100)), Refusal::HeadTooLarge);
    }

    proptest! {
        #[test]
        fn a_head_in_pieces_is_read_as_a_whole_one(
            lines in prop::collection::vec("[ -~]{0,20}", 0..6),
            cut in 0_usize..200,
        ) {
            let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n\r\n", lines.join("\r\n"));
            let bytes = text.as_bytes();
            let mut head = Head::default();
            let cut = cut.min(bytes.len());
            let first = head.read(&bytes[..cut]);
            let found = if first == Found::More { head.read(bytes) } else { first };
            prop_assert_eq!(found, Head::default().read(bytes));
        }
    }
}
