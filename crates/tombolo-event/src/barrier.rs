//! Named points on the path at which a test may kill the process.
//!
//! Each hop calls [`reach`] at the moments that matter. Nothing happens unless the program installed a hook
//! first, which only test builds do; the cost is one atomic load.

use std::any::Any;
use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

static HOOK: OnceLock<fn(&'static str)> = OnceLock::new();

/// Whom a thread works for, for a hook that has to tell several in one process apart.
pub type Owner = Arc<dyn Any + Send + Sync>;

thread_local! {
    static OWNER: RefCell<Option<Owner>> = const { RefCell::new(None) };
}

/// The barriers of the path, in its order, so that a fault run can visit each.
pub const ALL: &[&str] = &[
    "outbox.before-commit",
    "outbox.after-commit",
    "later.before-move",
    "later.after-move",
    "relay.after-numbering",
    "relay.before-append",
    "log.before-write",
    "log.after-write",
    "log.after-sync",
    "relay.after-append",
    "relay.after-remove",
    "divide.before-commit",
    "divide.after-commit",
    "divide.before-seal",
    "divide.after-seal",
    "subscription.after-read",
    "subscription.after-effect",
    "subscription.after-cursor",
    "subscription.after-commit",
    "parking.after-attempt",
    "parking.before-commit",
    "redrive.after-attempt",
    "redrive.before-commit",
    "effect.after-record",
    "effect.after-call",
    "effect.after-completion",
    "effect.after-commit",
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

/// Whom this thread works for, if anybody said so. A hop that starts a thread passes it on.
#[must_use]
pub fn owner() -> Option<Owner> {
    OWNER.with_borrow(Clone::clone)
}

/// Says whom this thread works for from now on.
pub fn work_for(owner: Option<Owner>) {
    OWNER.set(owner);
}
