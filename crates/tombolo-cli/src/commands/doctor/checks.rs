//! What was checked, and what came out. Invariant: whatever is not as it should be says what mends it.

use serde::Serialize;

/// What came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Pass,
    /// It works, and something is worth knowing.
    Warn,
    /// It does not work, or breaks the promise.
    Fail,
}

impl Verdict {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Check {
    pub(crate) verdict: Verdict,
    /// What it is of: a service, `bus`, `manifest`.
    pub(crate) subject: String,
    /// What should be true.
    pub(crate) what: String,
    pub(crate) found: String,
    pub(crate) fix: Option<String>,
}

/// All of them, in the order in which they were made.
#[derive(Debug, Default)]
pub(crate) struct Checks(pub(crate) Vec<Check>);

impl Checks {
    pub(crate) fn pass(&mut self, subject: &str, what: &str, found: &str) {
        self.add(Verdict::Pass, subject, what, found, None);
    }

    pub(crate) fn warn(&mut self, subject: &str, what: &str, found: &str, fix: &str) {
        self.add(Verdict::Warn, subject, what, found, Some(fix));
    }

    pub(crate) fn fail(&mut self, subject: &str, what: &str, found: &str, fix: &str) {
        self.add(Verdict::Fail, subject, what, found, Some(fix));
    }

    fn add(&mut self, verdict: Verdict, subject: &str, what: &str, found: &str, fix: Option<&str>) {
        let (subject, what, found) = (subject.to_owned(), what.to_owned(), found.to_owned());
        self.0.push(Check { verdict, subject, what, found, fix: fix.map(str::to_owned) });
    }

    pub(crate) fn count(&self, verdict: Verdict) -> usize {
        self.0.iter().filter(|check| check.verdict == verdict).count()
    }
}
