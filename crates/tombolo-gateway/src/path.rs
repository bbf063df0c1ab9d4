//! Paths as everybody behind the door understands them.
//!
//! Invariant: two paths that a service may take for the same are the same after this, or refused; so no spelling of a
//! path leads past the route that guards it.

use std::borrow::Cow;

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ambiguous;

/// The path with unreserved characters decoded and repeated slashes made one. Dot segments, encoded slashes, backslashes
/// and control characters are refused: services disagree about what they mean.
pub(crate) fn normalized(path: &str) -> Result<Cow<'_, str>, Ambiguous> {
    if !path.starts_with('/') {
        return Err(Ambiguous);
    }
    let is_plain = !path.contains('%') && !path.contains("//");
    let path = if is_plain { Cow::Borrowed(path) } else { Cow::Owned(decoded(path)?) };
    let is_ambiguous =
        path.bytes().any(|byte| byte.is_ascii_control() || byte == b'\\' || byte == b'#' || byte == b' ');
    let has_dots = path.contains("/.") && path.split('/').any(is_dots);
    if is_ambiguous || has_dots { Err(Ambiguous) } else { Ok(path) }
}

/// A dot segment, also with a parameter behind it, which some servers cut off first, and some of those when they have decoded it.
fn is_dots(segment: &str) -> bool {
    let name = segment.split(';').next().and_then(|name| name.split("%3B").next());
    matches!(name, Some("." | ".."))
}

fn decoded(path: &str) -> Result<String, Ambiguous> {
    let mut normal = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(first) = rest.chars().next() {
        if first == '%' {
            let value = rest.get(1..3).and_then(hex).ok_or(Ambiguous)?;
            match value {
                b'/' | b'\\' => return Err(Ambiguous),
                control if control.is_ascii_control() => return Err(Ambiguous),
                b'-' | b'.' | b'_' | b'~' => normal.push(char::from(value)),
                unreserved if unreserved.is_ascii_alphanumeric() => normal.push(char::from(value)),
                other => normal.push_str(&format!("%{other:02X}")),
            }
            rest = &rest[3..];
        } else {
            if first != '/' || !normal.ends_with('/') {
                normal.push(first);
            }
            rest = &rest[first.len_utf8()..];
        }
    }
    Ok(normal)
}

fn hex(digits: &str) -> Option<u8> {
    digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u8::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spellings_of_one_path_are_one() {
        for (path, normal) in [
            ("/orders", "/orders"),
            ("//orders", "/orders"),
            ("/%6Frders///7", "/orders/7"),
            ("/a%20b", "/a%20b"),
            ("/a%c3%a4", "/a%C3%A4"),
            ("/~me/%7e", "/~me/~"),
            ("/", "/"),
            ("/a/...", "/a/..."),
            ("/.well-known/x", "/.well-known/x"),
        ] {
            assert_eq!(normalized(path).unwrap(), normal);
        }
    }

    #[test]
    fn what_services_understand_differently_is_refused() {
        for path in [
            "",
            "*",
            "orders",
            "/a/../b",
            "/a/%2e%2e/b",
            "/..",
            "/.",
            "/a/.%2E/b",
            "/a%2Fb",
            "/a%5cb",
            "/a\\b",
            "/a%00",
            "/a%0d%0a",
            "/%",
            "/%4",
            "/%zz",
            "/a/..;x=1/b",
            "/a/%2e%3b/b",
            "/a/..%3Bx/b",
            "/%+1",
        ] {
            assert_eq!(normalized(path), Err(Ambiguous), "{path}");
        }
    }

    proptest! {
        #[test]
        fn what_is_normal_stays_as_it_is(path in "/[a-zA-Z0-9%./;_~-]{0,40}") {
            if let Ok(normal) = normalized(&path) {
                let again = normalized(&normal).unwrap().into_owned();
                prop_assert_eq!(&again, &*normal);
                prop_assert!(!normal.contains("//"));
                prop_assert!(!normal.split('/').any(|segment| segment == ".." || segment == "."));
            }
        }

        #[test]
        fn no_text_makes_it_panic(path in "\\PC*") {
            let _ = normalized(&path);
        }
    }
}
