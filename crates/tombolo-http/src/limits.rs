//! The bounds of what comes in, by name and with their units.

use std::time::Duration;

/// The largest body of a request, in bytes: a batch of events.
pub(crate) const BODY_BYTES_MAX: usize = 4 << 20;
/// The most bytes of all bodies that are being sent at once; whoever comes then is asked to come again.
pub(crate) const BODIES_BYTES_MAX: usize = 256 << 20;
/// The most events of one batch.
pub(crate) const BATCH_EVENTS_MAX: usize = 10_000;
/// The longest `id` and `source` of an event, in bytes.
pub(crate) const ORIGIN_BYTES_MAX: usize = 1024;
/// The longest `type`, in bytes.
pub(crate) const TYPE_BYTES_MAX: usize = 255;
/// The most extension attributes of an event.
pub(crate) const EXTENSIONS_MAX: usize = 64;
/// The most events that one request reads.
pub(crate) const READ_EVENTS_MAX: usize = 10_000;
/// The most bytes that one request reads, as events are stored; one event may be larger.
pub(crate) const READ_BYTES_MAX: usize = 1 << 20;
/// How many, where a reader does not say.
pub(crate) const READ_EVENTS_DEFAULT: usize = 1_000;
/// The longest that a read waits for an event.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(60);
/// How long a stream of events may say nothing before it shows that it is alive.
pub(crate) const ALIVE_EVERY: Duration = Duration::from_secs(15);
/// How long a body may stand still while it is sent.
pub(crate) const BODY_STILL_MAX: Duration = Duration::from_secs(30);
