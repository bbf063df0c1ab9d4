//! What waits for the writer. Invariant: requests are taken in the order in which they were pushed, and none is
//! left behind: after the queue is closed, what waits is still taken, and what comes is refused.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::staging::Request;
use crate::Kind;

/// How long the writer looks for work before it goes to sleep: less than waking it up takes.
const SPIN: Duration = Duration::from_micros(20);

/// The queue of one log.
#[derive(Default)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    arrived: Condvar,
    has_work: AtomicBool,
}

#[derive(Default)]
struct Inner {
    waiting: VecDeque<Request>,
    is_closed: bool,
    is_writer_asleep: bool,
}

/// What the writer gets.
pub(super) enum Taken {
    /// Requests, and the bytes that they add up to.
    Requests(Vec<Request>, usize),
    /// Nothing came for as long as it waited.
    Idle,
    /// Nothing is left and nothing will come.
    Closed,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, request: Request) {
        let mut inner = self.lock();
        if inner.is_closed {
            drop(inner);
            return request.refuse(Kind::Closed, "the bus was closed; open it again");
        }
        inner.waiting.push_back(request);
        self.has_work.store(true, Ordering::Release);
        if inner.is_writer_asleep {
            self.arrived.notify_one();
        }
    }

    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.has_work.store(true, Ordering::Release);
        self.arrived.notify_one();
    }

    /// Takes what waits, up to `bytes_max`, at least one; waits for it, but no longer than `idle`.
    pub(super) fn take(&self, bytes_max: usize, idle: Option<Duration>) -> Taken {
        self.spin();
        let mut inner = self.lock();
        while inner.waiting.is_empty() {
            if inner.is_closed {
                return Taken::Closed;
            }
            inner.is_writer_asleep = true;
            let (woken, timed_out) = match idle {
                Some(idle) => {
                    let waited =
                        self.arrived.wait_timeout(inner, idle).unwrap_or_else(PoisonError::into_inner);
                    (waited.0, waited.1.timed_out())
                }
                None => (self.arrived.wait(inner).unwrap_or_else(PoisonError::into_inner), false),
            };
            inner = woken;
            inner.is_writer_asleep = false;
            if timed_out && inner.waiting.is_empty() && !inner.is_closed {
                return Taken::Idle;
            }
        }
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(next) = inner.waiting.front().map(Request::size) {
            if !taken.is_empty() && bytes + next > bytes_max {
                break;
            }
            bytes += next;
            taken.extend(inner.waiting.pop_front());
        }
        self.has_work.store(!inner.waiting.is_empty(), Ordering::Release);
        Taken::Requests(taken, bytes)
    }

    fn spin(&self) {
        let begun = Instant::now();
        while !self.has_work.load(Ordering::Acquire) && begun.elapsed() < SPIN {
            std::hint::spin_loop();
        }
    }
}
