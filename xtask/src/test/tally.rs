//! Counts what test programs print. Pure. Invariant: a test that returned because its server was
//! missing is counted as skipped and not as passed.

use std::fmt;
use tombolo_servers::Error;

/// How a test says that it did nothing, or that a case of it can't be run here.
const SKIPPED: &str = "skipped:";

/// How it says that it lacked a server.
const MISSING_SERVER: &str = "is not set";

/// How it says that it lacked one which a full run may lack, because it is not to be had everywhere.
const ABSENT_SERVER: &str = "is not to be had here";

/// What has been counted.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    skipped: u64,
    /// Skipped for want of a server: each is one whole test.
    missing: u64,
    /// The same for want of one that a full run may lack.
    absent: u64,
    /// Inside the output of tests that passed, which is not shown.
    hidden: bool,
    /// A run that failed without a failed test: it did not build, or crashed.
    broken: bool,
    /// Failures counted when the present run began.
    failed_before: u64,
}

impl Tally {
    /// Counts a line of standard output; whether to show it.
    pub(super) fn out(&mut self, line: &str) -> bool {
        let skip = self.skip(line);
        match line {
            "successes:" => self.hidden = true,
            "failures:" => self.hidden = false,
            _ => {}
        }
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.hidden = false;
            self.passed += count(counts, "passed");
            self.failed += count(counts, "failed");
            self.ignored += count(counts, "ignored");
        }
        skip || !self.hidden
    }

    /// Counts a line of standard error.
    pub(super) fn err(&mut self, line: &str) {
        self.skip(line);
    }

    fn skip(&mut self, line: &str) -> bool {
        let skip = line.starts_with(SKIPPED);
        self.skipped += u64::from(skip);
        self.missing += u64::from(skip && line.contains(MISSING_SERVER));
        self.absent += u64::from(skip && line.contains(ABSENT_SERVER));
        skip
    }

    /// One `cargo test` has ended.
    pub(super) fn ended(&mut self, success: bool) {
        self.broken |= !success && self.failed == self.failed_before;
        self.failed_before = self.failed;
        self.hidden = false;
    }

    /// Whether the whole run is good; a quick one may lack servers.
    pub(super) fn verdict(&self, quick: bool) -> Result<(), Error> {
        if self.failed > 0 {
            return Err(Error::new(format!("{} tests failed", self.failed)));
        }
        if self.broken {
            return Err(Error::new("the tests did not build, or a test program crashed; see above"));
        }
        if self.passed == 0 {
            return Err(Error::new("no test ran at all"));
        }
        if self.missing > 0 && !quick {
            return Err(Error::new(format!(
                "{} tests were skipped for a missing server; a full run must run them all",
                self.missing
            )));
        }
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let passed = self.passed.saturating_sub(self.missing + self.absent);
        write!(out, "{passed} passed, {} failed, {} skipped", self.failed, self.skipped + self.ignored)
    }
}

/// The number before a word in `ok. 3 passed; 0 failed; …`.
fn count(counts: &str, word: &str) -> u64 {
    let mut words = counts.split([' ', ';', '.']).filter(|it| !it.is_empty());
    let mut before = "";
    words
        .find_map(|it| {
            let found = (it == word).then(|| before.parse().ok());
            before = it;
            found
        })
        .flatten()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &str) -> (Tally, Vec<&str>) {
        let mut tally = Tally::default();
        let shown = lines.lines().filter(|line| tally.out(line)).collect();
        (tally, shown)
    }

    const RUN: &str = "\
running 3 tests
test a ... ok
successes:

---- a stdout ----
chatter
skipped: postgres: TOMBOLO_TEST_POSTGRES is not set; run cargo xtask test --install
skipped: read_types: nats cannot pass over types

successes:
    a
    b

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";

    #[test]
    fn a_test_without_its_server_is_skipped_and_not_passed() {
        let (tally, _) = tally(RUN);
        assert_eq!(tally.to_string(), "1 passed, 0 failed, 3 skipped");
    }

    #[test]
    fn a_full_run_that_lacked_a_server_fails_and_a_quick_one_does_not() {
        let (tally, _) = tally(RUN);
        assert!(tally.verdict(false).unwrap_err().to_string().contains("missing server"));
        assert!(tally.verdict(true).is_ok());
    }

    #[test]
    fn a_full_run_may_lack_what_is_not_to_be_had_and_does_not_count_it_as_passed() {
        let run = RUN.replace("TOMBOLO_TEST_POSTGRES is not set", "MongoDB is not to be had here");
        let (tally, _) = tally(&run);
        assert_eq!(tally.to_string(), "1 passed, 0 failed, 3 skipped");
        assert!(tally.verdict(false).is_ok());
    }

    #[test]
    fn the_chatter_of_passed_tests_is_hidden_and_their_skips_are_shown() {
        let (_, shown) = tally(RUN);
        assert!(!shown.contains(&"chatter"));
        assert_eq!(shown.iter().filter(|line| line.starts_with("skipped:")).count(), 2);
        assert!(shown.last().unwrap().starts_with("test result:"));
    }

    #[test]
    fn the_output_of_failed_tests_is_shown() {
        let (tally, shown) =
            tally("successes:\nhidden\nfailures:\nwhy\ntest result: FAILED. 1 passed; 2 failed; 0 ignored");
        assert!(shown.contains(&"why") && !shown.contains(&"hidden"));
        assert_eq!(tally.verdict(true).unwrap_err().to_string(), "2 tests failed");
    }

    #[test]
    fn a_crash_without_a_failed_test_fails_the_run() {
        let (mut tally, _) = tally(RUN);
        tally.ended(false);
        assert!(tally.verdict(true).unwrap_err().to_string().contains("crashed"));
    }

    #[test]
    fn a_run_without_any_test_fails() {
        assert!(Tally::default().verdict(true).is_err());
    }
}
