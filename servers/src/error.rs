//! The one error here and in xtask: a sentence for the person at the terminal, and an exit code. Invariant:
//! the sentence says what was found, what was expected and what to do.

use std::fmt;

/// Why a chore did not succeed.
#[derive(Debug)]
pub struct Error {
    message: String,
    exit_code: u8,
}

/// What a shell expects of a command that Ctrl-C ended.
const INTERRUPTED_EXIT_CODE: u8 = 130;

impl Error {
    /// An error that says `message`.
    pub fn new(message: impl Into<String>) -> Self {
        Error { message: message.into(), exit_code: 1 }
    }

    /// Ctrl-C.
    #[must_use]
    pub fn interrupted() -> Self {
        Error { message: "interrupted; what it started is stopped".into(), exit_code: INTERRUPTED_EXIT_CODE }
    }

    /// What the process ends with.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        self.exit_code
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

/// Says what was being done when something failed.
pub trait Context<T> {
    /// The same, with what was being done.
    ///
    /// # Errors
    /// If it was one.
    fn context(self, doing: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    /// The same, with what was being done.
    ///
    /// # Errors
    /// If it was one.
    fn context(self, doing: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|error| Error::new(format!("failed to {}: {error}", doing())))
    }
}
