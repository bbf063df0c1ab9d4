//! The one error of xtask: a sentence for the person at the terminal, and an exit code. Invariant:
//! the sentence says what was found, what was expected and what to do.

use std::fmt;

/// Why a chore did not succeed.
#[derive(Debug)]
pub(crate) struct Error {
    message: String,
    exit_code: u8,
}

/// What a shell expects of a command that Ctrl-C ended.
const INTERRUPTED_EXIT_CODE: u8 = 130;

impl Error {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Error { message: message.into(), exit_code: 1 }
    }

    pub(crate) fn interrupted() -> Self {
        Error { message: "interrupted; what it started is stopped".into(), exit_code: INTERRUPTED_EXIT_CODE }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        self.exit_code
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

/// Says what was being done when something failed.
pub(crate) trait Context<T> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|error| Error::new(format!("failed to {}: {error}", doing())))
    }
}
