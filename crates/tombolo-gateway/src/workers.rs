//! The threads that carry requests.
//!
//! Each has a runtime of its own, and connections to replicas of its own, so that nothing of a request is handed between threads:
//! with one runtime for all, waking each other and freeing each other's memory cost more than passing requests on.
//!
//! Invariant: a connection stays on the thread that it was given to, the one with the fewest; the threads have ended when
//! [`Gateway::stop`](crate::Gateway::stop) returns.

use std::cell::Cell;
use std::net::{SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};

use prometheus_client::metrics::gauge::Gauge;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::error::{Error, Kind, Result};
use crate::metrics::Counted;
use crate::server::Entrance;

thread_local! {
    static HERE: Cell<usize> = const { Cell::new(0) };
}

/// The number of this thread. All threads that carry no requests have 0, and only look after replicas.
pub(crate) fn here() -> usize {
    HERE.get()
}

/// How many numbers there are: one thread for each processor, and all others.
pub(crate) fn numbers() -> usize {
    1 + thread::available_parallelism().map_or(1, usize::from)
}

/// A client's connection, with its place.
pub(crate) struct Guest {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) place: OwnedSemaphorePermit,
    /// Counts it among those of its thread.
    pub(crate) seat: Counted,
}

struct Worker {
    guests: UnboundedSender<Guest>,
    seats: Gauge,
}

/// The threads, as who accepts connections knows them. Without it they take no more, and end when all is done.
pub(crate) struct Workers(Vec<Worker>);

impl Workers {
    /// Starts them.
    ///
    /// # Errors
    /// `Machine` if there can be no runtime or no thread.
    pub(crate) fn start(entrance: &Entrance) -> Result<(Self, Vec<JoinHandle<()>>)> {
        let started = (1..numbers()).map(|number| start(number, entrance.clone()));
        let (workers, threads) = started.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        Ok((Self(workers), threads))
    }

    /// Gives a connection to the thread with the fewest.
    pub(crate) fn give(&self, stream: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) {
        let Some(worker) = self.0.iter().min_by_key(|worker| worker.seats.get()) else {
            return;
        };
        let guest = Guest { stream, peer, place, seat: Counted::new(&worker.seats) };
        if worker.guests.send(guest).is_err() {
            tracing::error!("a thread of the gateway has ended early; a connection is dropped");
        }
    }
}

fn start(number: usize, mut entrance: Entrance) -> Result<(Worker, JoinHandle<()>)> {
    // Each connection asks, whenever something happens, whether it should end: better not all threads the same lock.
    entrance.drain = entrance.drain.child_token();
    let wrong = |error| Error::new(Kind::Machine, "a thread for requests cannot be started").because(error);
    let runtime = Builder::new_current_thread().enable_all().build().map_err(wrong)?;
    let (guests, incoming) = unbounded_channel();
    let thread = thread::Builder::new().name(format!("gateway-{number}"));
    let thread = thread.spawn(move || work(number, &runtime, &entrance, incoming)).map_err(wrong)?;
    Ok((Worker { guests, seats: Gauge::default() }, thread))
}

fn work(number: usize, runtime: &Runtime, entrance: &Entrance, mut incoming: UnboundedReceiver<Guest>) {
    HERE.set(number);
    runtime.block_on(async {
        while let Some(guest) = incoming.recv().await {
            entrance.welcome(guest);
        }
        entrance.visits.wait().await;
        entrance.core.ground.tasks.wait().await;
    });
}
