//! The one error of this crate. Invariant: [`Kind`] alone decides the exit code; the text is for people and says
//! what was found, what was expected, what to do.

use std::error::Error as StdError;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The result of everything in this crate.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// What went wrong, as far as a script must tell cases apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// It was understood, and it did not work.
    Failed,
    /// The command line or the manifest is wrong.
    Usage,
    /// There is no such service, topic, partition.
    NotFound,
    /// What was to be asked does not run, or cannot be reached.
    NotRunning,
}

impl Kind {
    /// The exit code that scripts see; the same table is in `tombolo --help`.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::NotFound => 3,
            Kind::NotRunning => 4,
        }
    }
}

/// Something that a command could not do. Crosses the control socket as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Error {
    /// What went wrong, for scripts.
    pub(crate) kind: Kind,
    /// The same for people.
    pub(crate) message: String,
}

impl Error {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    pub(crate) fn not_running(message: impl Into<String>) -> Self {
        Self::new(Kind::NotRunning, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {}

/// Says what was being done when something failed.
pub(crate) trait Context<T> {
    /// The error `doing: error: its causes`, of kind [`Kind::Failed`].
    fn context(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: StdError + 'static> Context<T> for std::result::Result<T, E> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::failed(format!("{}: {}", doing(), with_causes(&error))))
    }
}

/// An error's text with that of everything that caused it, each said once.
pub(crate) fn with_causes(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

impl From<tombolo_bus::Error> for Error {
    fn from(error: tombolo_bus::Error) -> Self {
        use tombolo_bus::Kind as Bus;
        let kind = match error.kind() {
            Bus::UnknownTopic | Bus::UnknownPartition => Kind::NotFound,
            Bus::Unavailable | Bus::Closed => Kind::NotRunning,
            Bus::Configuration | Bus::InvalidName => Kind::Usage,
            _ => Kind::Failed,
        };
        Self::new(kind, with_causes(&error))
    }
}
