//! What the service is called: its own name, which is its topic's, and what the types of its events begin with.
//!
//! Invariant: names outlive programs, so they are constants of one; in the shop the service is `users`.

/// The longest name of a type.
const TYPE_BYTES_MAX: usize = 127;

/// What the service is called.
pub trait Names: Send + Sync + 'static {
    /// Its name, and its topic's.
    const SERVICE: &'static str;
    /// What the types of its events begin with.
    const TYPES: &'static str;
}

/// The names unless others are chosen.
pub struct DefaultNames;

impl Names for DefaultNames {
    const SERVICE: &'static str = "identity";
    const TYPES: &'static str = "identity";
}

/// A type's name, put together by the compiler.
pub(crate) struct Joined {
    bytes: [u8; TYPE_BYTES_MAX],
    length: usize,
}

impl Joined {
    /// `first` and `second` with a dot between.
    pub(crate) const fn new(first: &str, second: &str) -> Self {
        let mut joined = Self { bytes: [0; TYPE_BYTES_MAX], length: 0 };
        joined = joined.with(first.as_bytes());
        joined = joined.with(b".");
        joined.with(second.as_bytes())
    }

    const fn with(mut self, more: &[u8]) -> Self {
        let mut at = 0;
        while at < more.len() {
            self.bytes[self.length] = more[at];
            self.length += 1;
            at += 1;
        }
        self
    }

    pub(crate) const fn as_str(&self) -> &str {
        match std::str::from_utf8(self.bytes.split_at(self.length).0) {
            Ok(text) => text,
            Err(_) => "",
        }
    }
}
