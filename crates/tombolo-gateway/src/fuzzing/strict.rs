//! A second reading of HTTP/1, strict and slow: all bytes at once, split where the grammar splits them.
//!
//! Invariant: it shares nothing with the guard but the bounds. Source: <https://www.rfc-editor.org/rfc/rfc9112>.

const HEADERS_MAX: usize = 100;
const EMPTY_LINES_MAX: usize = 2;
const LENGTH_DIGITS_MAX: usize = 18;
const SIZE_DIGITS_MAX: usize = 12;

/// A request, as somebody read it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Strict {
    pub(super) method: String,
    pub(super) target: String,
    /// Names in lower case, in order.
    pub(super) headers: Vec<(String, Vec<u8>)>,
    pub(super) body: Vec<u8>,
    /// Whether its end came.
    pub(super) is_whole: bool,
}

/// How the bytes end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Between requests, or in a body that is sound so far.
    Open,
    /// In a head; nothing of it may pass.
    InHead,
    /// In what has no single reading.
    Refused,
    /// Behind a request to change the protocol.
    Switched,
}

/// All requests of a connection.
pub(super) struct Reading {
    pub(super) requests: Vec<Strict>,
    /// No byte from here on may pass.
    pub(super) sound: usize,
    pub(super) end: End,
}

/// Reads a connection.
pub(super) fn read(input: &[u8]) -> Reading {
    let (mut requests, mut sound) = (Vec::new(), 0);
    let end = loop {
        let rest = &input[sound..];
        let (mut request, length, framing) = match head(rest) {
            Head::Whole(request, length, framing) => (request, length, framing),
            Head::Part => break if rest.is_empty() { End::Open } else { End::InHead },
            Head::Refused => break End::Refused,
        };
        sound += length;
        let body = &input[sound..];
        let (taken, end) = match framing {
            Framing::Switch => (0, Some(End::Switched)),
            Framing::Length(bytes) => {
                let taken = usize::try_from(bytes).unwrap_or(usize::MAX).min(body.len());
                request.body = body[..taken].to_vec();
                (taken, (taken as u64 != bytes).then_some(End::Open))
            }
            Framing::Chunked => chunks(body, &mut request.body),
        };
        sound += taken;
        request.is_whole = matches!(end, None | Some(End::Switched));
        requests.push(request);
        if let Some(end) = end {
            break end;
        }
    };
    Reading { requests, sound, end }
}

enum Framing {
    Length(u64),
    Chunked,
    Switch,
}

enum Head {
    Whole(Strict, usize, Framing),
    Part,
    Refused,
}

fn head(input: &[u8]) -> Head {
    let (mut rest, mut empty) = (input, 0);
    while let Some(after) = rest.strip_prefix(b"\r\n") {
        (rest, empty) = (after, empty + 1);
    }
    if empty > EMPTY_LINES_MAX {
        return Head::Refused;
    }
    let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n") else { return Head::Part };
    let length = input.len() - rest.len() + end + 4;
    match lines(&rest[..end]) {
        Some((request, framing)) => Head::Whole(request, length, framing),
        None => Head::Refused,
    }
}

fn lines(head: &[u8]) -> Option<(Strict, Framing)> {
    // Only ends of lines may hold what ends lines; a decoded byte is a character here, so nothing is lost.
    let text: String = head.iter().map(|byte| char::from(*byte)).collect();
    let mut lines = text.split("\r\n");
    let [method, target, version] = lines.next()?.split(' ').collect::<Vec<_>>().try_into().ok()?;
    let is_old = version == "HTTP/1.0";
    let is_sound = is_token(method) && !target.is_empty() && !target.contains(is_control);
    if !is_sound || !is_old && version != "HTTP/1.1" {
        return None;
    }
    let mut headers = lines.map(header).collect::<Option<Vec<(String, String)>>>()?;
    if headers.len() > HEADERS_MAX {
        return None;
    }
    headers.sort();
    let framing = framing(&headers, is_old)?;
    let bytes = |text: &str| text.chars().map(|letter| letter as u8).collect::<Vec<u8>>();
    let target = String::from_utf8(bytes(target)).unwrap_or_default();
    let headers = headers.iter().map(|(name, value)| (name.clone(), bytes(value))).collect();
    Some((Strict { method: method.into(), target, headers, body: Vec::new(), is_whole: false }, framing))
}

fn header(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    let value = value.trim_matches([' ', '\t']);
    let is_sound = is_token(name) && !value.contains(|letter| is_control(letter) && letter != '\t');
    is_sound.then(|| (name.to_ascii_lowercase(), value.to_owned()))
}

fn framing(headers: &[(String, String)], is_old: bool) -> Option<Framing> {
    let all = |wanted: &str| {
        let found = headers.iter().filter(|(name, _)| name == wanted);
        found.map(|(_, value)| value.as_str()).collect::<Vec<_>>()
    };
    let hosts = all("host").len();
    if hosts > 1 || hosts == 0 && !is_old {
        return None;
    }
    let is_switch = all("upgrade").iter().any(|value| value.eq_ignore_ascii_case("websocket"));
    let framing = match (&*all("content-length"), &*all("transfer-encoding")) {
        ([], []) => Framing::Length(0),
        ([length], []) if length.len() <= LENGTH_DIGITS_MAX => {
            let is_plain = length.chars().all(|digit| digit.is_ascii_digit());
            Framing::Length(length.parse().ok().filter(|_| is_plain)?)
        }
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") && !is_old => Framing::Chunked,
        _ => return None,
    };
    match (is_switch, framing) {
        (true, Framing::Length(0)) => Some(Framing::Switch),
        (true, _) => None,
        (false, framing) => Some(framing),
    }
}

/// How many bytes are the body's, and how it ends if another request cannot follow.
fn chunks(input: &[u8], body: &mut Vec<u8>) -> (usize, Option<End>) {
    let mut rest = input;
    loop {
        let at = input.len() - rest.len();
        let Some((line, after)) = line(rest) else { return (at + line_end(rest), Some(ended(rest))) };
        let Some(size) = size(line) else { return (at + line.len(), Some(End::Refused)) };
        rest = after;
        if size == 0 {
            return trailers(input, rest);
        }
        let there = usize::try_from(size).unwrap_or(usize::MAX).min(rest.len());
        body.extend_from_slice(&rest[..there]);
        rest = &rest[there..];
        if (there as u64) < size {
            return (input.len(), Some(End::Open));
        }
        match rest {
            [b'\r', b'\n', after @ ..] => rest = after,
            [] | [b'\r'] => return (input.len(), Some(End::Open)),
            _ => return (input.len() - rest.len() + 1, Some(End::Refused)),
        }
    }
}

fn trailers(input: &[u8], mut rest: &[u8]) -> (usize, Option<End>) {
    loop {
        let at = input.len() - rest.len();
        let Some((line, after)) = line(rest) else { return (at + line_end(rest), Some(ended(rest))) };
        rest = after;
        if line.is_empty() {
            return (input.len() - rest.len(), None);
        }
        if !is_text(line) {
            return (at + line.len(), Some(End::Refused));
        }
    }
}

/// A line that ends in CR LF, and what follows. None if it has no end, or another.
fn line(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = input.iter().position(|byte| *byte == b'\n')?;
    Some((input[..end].strip_suffix(b"\r")?, &input[end + 1..]))
}

fn line_end(input: &[u8]) -> usize {
    input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len())
}

/// What a line without CR LF is: refused, or perhaps only not at its end.
fn ended(input: &[u8]) -> End {
    // Of a part of a line it is open whether it is sound, so nothing is asserted of it, as within a head.
    if input.contains(&b'\n') { End::Refused } else { End::InHead }
}

fn size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (digits, rest) = line.split_at(digits);
    let is_sound = (1..=SIZE_DIGITS_MAX).contains(&digits.len())
        && (rest.is_empty() || rest.starts_with(b";") && is_text(rest));
    let digits = std::str::from_utf8(digits).ok().filter(|_| is_sound)?;
    u64::from_str_radix(digits, 16).ok()
}

fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| !is_control(char::from(*byte)) || *byte == b'\t')
}

fn is_control(letter: char) -> bool {
    matches!(letter, '\0'..='\x1f' | '\x7f')
}

fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.chars().all(|letter| letter.is_ascii_graphic() && !"\"(),/:;<=>?@[\\]{}".contains(letter))
}
