//! Deliberate faults of this engine, for the test that asserts that each is caught. Invariant: a connection has none
//! until a test gives it one.

use super::scripts::Script;

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Goes on appending after another relay raised the epoch.
    IgnoreTheEpoch,
    /// Leaves the earlier partitions open when a topic is divided.
    IgnoreTheSeals,
    /// Acknowledges a repeat without comparing its ids with what is stored.
    AcknowledgeAnyRepeat,
    /// Takes an append that leaves a hole, as explicit ids of entries alone would.
    TakeHoles,
    /// Begins to read without comparing the cursor's own record.
    BelieveTheCursor,
    /// Tells every member of a group of a signal.
    TellAllOfAGroup,
}

impl Mutant {
    /// The script with the fault in it.
    pub(super) fn change(self, script: Script, text: &str) -> String {
        let (of, from, to) = match self {
            Self::IgnoreTheEpoch => (Script::Append, "topic[4] ~= ARGV[3] or ", ""),
            Self::IgnoreTheSeals => (Script::Append, "partition < tonumber(topic[6])", "false"),
            Self::AcknowledgeAnyRepeat => (Script::Append, "found[2][2] ~= expected", "false"),
            Self::TakeHoles => {
                (Script::Append, "local stored = math.min(", "local stored = math.max(0, math.min(")
            }
            Self::BelieveTheCursor => return text.to_owned(),
            Self::TellAllOfAGroup => {
                (Script::Send, "reached = reached + 1; break end", "reached = reached + 1 end")
            }
        };
        if script != of {
            return text.to_owned();
        }
        assert!(text.contains(from), "{self:?} changes {from:?}");
        let changed = text.replace(from, to);
        if self == Self::TakeHoles {
            changed.replace("1 - first, count)", "1 - first, count))")
        } else {
            changed
        }
    }
}
