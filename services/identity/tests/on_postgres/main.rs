//! The same identity on PostgreSQL, where transactions run beside each other: every test of `it` in which its database plays a part.
//!
//! Not here: what looks into the files of a database, test worlds, and clients of other languages.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "../it/ground.rs"]
mod ground;
#[path = "../it/stage.rs"]
#[expect(dead_code, reason = "a part of it is for tests that are not here")]
mod stage;
#[path = "../it/stub.rs"]
mod stub;
#[path = "../it/signing_in.rs"]
mod signing_in;
#[path = "../it/doors.rs"]
mod doors;
#[path = "../it/internal.rs"]
mod internal;
#[path = "../it/rotation.rs"]
mod rotation;
#[path = "../it/blocks.rs"]
mod blocks;
#[path = "../it/engines.rs"]
mod engines;
#[path = "../it/kills.rs"]
mod kills;
#[path = "../it/at_once.rs"]
mod at_once;

/// The variable that names the server of identity's database.
const SERVER: Option<&str> = Some("TOMBOLO_TEST_POSTGRES");
