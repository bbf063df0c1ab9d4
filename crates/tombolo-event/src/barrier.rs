//! Named points on the path at which a test may kill the process.
//!
//! Each hop calls [`reach`] at the moments that matter. Nothing happens unless the program installed a hook
//! first, which only test builds do; the cost is one atomic load.

use std::sync::OnceLock;

static HOOK: OnceLock<fn(&'static str)> = OnceLock::new();

/// The barriers of the path, in its order, so that a fault run can visit each.
pub const ALL: &[&str] = &[
    "outbox.before-commit",
    "outbox.after-commit",
    "relay.after-numbering",
    "relay.before-append",
    "log.before-write",
    "log.after-write",
    "log.after-sync",
    "relay.after-append",
    "relay.after-remove",
    "subscription.after-read",
    "subscription.after-effect",
    "subscription.after-cursor",
    "subscription.after-commit",
];

/// Says that the program is at `name`.
pub fn reach(name: &'static str) {
    if let Some(hook) = HOOK.get() {
        hook(name);
    }
}

/// Installs what happens at every barrier, once; later calls change nothing.
pub fn install(hook: fn(&'static str)) {
    HOOK.get_or_init(|| hook);
}
