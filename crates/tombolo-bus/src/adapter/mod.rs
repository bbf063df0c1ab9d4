//! What engines of others have in common when they are used as a bus: how a server that is away is treated, in which order
//! appends go, how a partition is read page by page, who waits for its end, who listens, and the words of a refusal.
//!
//! Invariant: nothing here knows a server; each part is given what was read from one.

#[cfg(any(feature = "postgres", feature = "redis"))]
pub(crate) mod following;
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(crate) mod gate;
pub(crate) mod hearing;
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(crate) mod lanes;
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(crate) mod life;
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(crate) mod paging;
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(crate) mod refusal;
