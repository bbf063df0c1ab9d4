//! What engines of others have in common when they are used as a bus: how a server that is away is treated, in which order
//! appends go, how a partition is read page by page, who waits for its end, who listens, and the words of a refusal.
//!
//! Invariant: nothing here knows a server; each part is given what was read from one.

pub(crate) mod following;
pub(crate) mod gate;
pub(crate) mod hearing;
pub(crate) mod lanes;
pub(crate) mod life;
pub(crate) mod paging;
pub(crate) mod refusal;
