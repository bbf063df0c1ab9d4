//! The shop from door to door: real processes, started by `tombolo dev --detach`, each test with a shop of its own.
//!
//! Everything goes through routes and the operator's commands, as users and operators do it; only what cannot be seen
//! from outside (the orders database, the read model) is read from the databases. Invariant: every wait is bounded, and a
//! test that ends leaves no process and no file behind, which is asserted.

#![expect(clippy::unwrap_used, reason = "everything here is part of a test")]

mod built;
mod wait;
mod databases;
mod running;
mod doors;
mod ways;
mod dividing;
mod payments;
mod who;
mod one;
mod outage;
mod odd;
mod operating;
mod described;
mod kills;
mod gateway;
mod engines;
mod mails;
mod faults;
mod fold;
mod seed;
mod readme;
