//! Stands between a connection of HTTP/1 and hyper's parser, and lets through only what has one reading.
//!
//! hyper forgives what a service behind may read otherwise: a length beside chunks, the same length twice, a line without CR. The
//! guard parses nothing for anybody: it only refuses. What it refuses it replaces by a request to [`REFUSED_PATH`],
//! so that the refusal takes its turn behind earlier answers, and reads nothing more. Invariant: hyper never sees a byte of a
//! head that is not sound to its end, nor one that comes behind a request to change the protocol before the answer.

mod framing;
mod head;
pub(crate) mod fields;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use self::framing::Framing;
use self::head::{Found, Head};
use crate::mutant;
use crate::problem::Refusal;

/// What stands in the place of a request that was refused.
pub(crate) const REFUSED_PATH: &str = "/.refused";
const REFUSED_REQUEST: &[u8] = b"GET /.refused HTTP/1.1\r\nHost: refused\r\nConnection: close\r\n\r\n";
/// How much is read at once while a head comes in pieces.
const PIECE_BYTES: usize = 4 << 10;
/// How much of what a client still sends is read and dropped, so that it can read the answer before the connection is reset.
const LINGER_BYTES_MAX: usize = 512 << 10;
/// And for how long.
const LINGER_MAX: Duration = Duration::from_secs(2);

/// What the guard and those who answer tell each other about a connection.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    refused: AtomicU8,
    switched: AtomicBool,
    waker: AtomicWaker,
    under_way: AtomicU32,
    begun: AtomicU32,
}

impl Shared {
    /// Why the guard refused, once it has.
    pub(crate) fn refused(&self) -> Option<Refusal> {
        Refusal::numbered(self.refused.load(Ordering::Acquire))
    }

    /// Says that the protocol was changed: from now on everything passes.
    pub(crate) fn switch(&self) {
        self.switched.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Says that a request came; the connection does not rest until [`Self::end`].
    pub(crate) fn begin(&self) {
        self.begun.fetch_add(1, Ordering::AcqRel);
        self.under_way.fetch_add(1, Ordering::AcqRel);
    }

    /// Until nothing was under way for so long, or up to twice as long.
    pub(crate) async fn rested(&self, idle: Duration) {
        loop {
            let begun = self.begun.load(Ordering::Acquire);
            sleep(idle).await;
            if self.begun.load(Ordering::Acquire) == begun && self.rests() {
                return;
            }
        }
    }

    /// Whether nothing is under way.
    pub(crate) fn rests(&self) -> bool {
        self.under_way.load(Ordering::Acquire) == 0
    }

    /// Says that an answer has gone.
    pub(crate) fn end(&self) {
        self.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What the next bytes are.
#[derive(Debug)]
enum Stage {
    Head(Head),
    Body(Framing),
    /// Waits for the answer to a request to change the protocol.
    Switching,
    /// Everything passes.
    Open,
    /// Nothing passes any more.
    Refused,
    /// The same in the middle of a body.
    Broken,
}

/// How long a connection may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// The most bytes of a head.
    pub(crate) head_bytes_max: usize,
    /// How long a head may take.
    pub(crate) head: Duration,
    /// How long it may rest.
    pub(crate) idle: Duration,
}

/// A guarded connection.
pub(crate) struct Guard<C> {
    connection: C,
    shared: Arc<Shared>,
    patience: Patience,
    stage: Stage,
    /// What of a head has come.
    held: Vec<u8>,
    /// What may pass and did not fit.
    passed: Vec<u8>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Since when it waits for bytes, and whether for the rest of a head.
    waits: Option<(bool, Instant)>,
    lingered: usize,
    is_closing: bool,
}

impl<C> Guard<C> {
    pub(crate) fn new(connection: C, shared: Arc<Shared>, patience: Patience) -> Self {
        let is_blind = mutant::is_on(mutant::Mutant::PassesHeads);
        Self {
            connection,
            shared,
            patience,
            stage: if is_blind { Stage::Open } else { Stage::Head(Head::default()) },
            held: Vec::new(),
            passed: Vec::new(),
            timer: None,
            waits: None,
            lingered: 0,
            is_closing: false,
        }
    }

    /// How many of these bytes may pass now, and why none of the rest ever may. Else the rest is part of a head.
    fn judge(&mut self, bytes: &[u8]) -> (usize, Option<Refusal>) {
        let mut passed = 0;
        loop {
            let rest = &bytes[passed..];
            match self.step(rest) {
                Ok(Some(taken)) => passed += taken,
                Ok(None) => return (passed, None),
                Err(refusal) => return (passed, Some(refusal)),
            }
        }
    }

    /// How many bytes the next part takes; nothing if it needs more than there are.
    fn step(&mut self, rest: &[u8]) -> Result<Option<usize>, Refusal> {
        match &mut self.stage {
            Stage::Head(head) => {
                let found = head.read(rest);
                return self.take_head(rest.len(), found);
            }
            Stage::Body(Framing::None) => {
                self.stage = Stage::Head(Head::default());
                return Ok(Some(0));
            }
            Stage::Body(_) if rest.is_empty() => return Ok(None),
            Stage::Body(framing) => return framing.take(rest).map(Some),
            Stage::Switching | Stage::Open | Stage::Refused | Stage::Broken => {}
        }
        Ok(Some(rest.len()).filter(|taken| *taken > 0))
    }

    fn take_head(&mut self, there: usize, found: Found) -> Result<Option<usize>, Refusal> {
        let (length, request) = match found {
            Found::Refused(refusal) => return Err(refusal),
            Found::More if there > self.patience.head_bytes_max => return Err(Refusal::HeadTooLarge),
            Found::More => return Ok(None),
            Found::Whole(length, _) if length > self.patience.head_bytes_max => {
                return Err(Refusal::HeadTooLarge);
            }
            Found::Whole(length, request) => (length, request),
        };
        if request.is_upgrade && there > length {
            return Err(Refusal::EarlyUpgrade);
        }
        self.stage = if request.is_upgrade { Stage::Switching } else { Stage::Body(request.framing) };
        Ok(Some(length))
    }

    /// Lets the refusal through in place of what was refused. A body cannot be replaced: it breaks off.
    fn refuse(&mut self, refusal: Refusal) {
        self.shared.refused.store(refusal as u8, Ordering::Release);
        self.held = Vec::new();
        if matches!(self.stage, Stage::Body(_)) {
            self.stage = Stage::Broken;
        } else {
            self.stage = Stage::Refused;
            self.passed.extend_from_slice(REFUSED_REQUEST);
        }
    }

    fn deliver(&mut self, into: &mut ReadBuf<'_>) -> bool {
        if self.passed.is_empty() {
            return false;
        }
        let count = self.passed.len().min(into.remaining());
        into.put_slice(&self.passed[..count]);
        self.passed.drain(..count);
        if self.passed.is_empty() {
            self.passed = Vec::new();
        }
        true
    }
}

impl<C: AsyncRead + Unpin> Guard<C> {
    /// Reads straight into the reader's buffer; what may not pass yet is held back.
    fn read_through(&mut self, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.connection).poll_read(context, into))?;
        self.waits = None;
        let (from, to) = (before, into.filled().len());
        if from == to {
            return Poll::Ready(Ok(true));
        }
        let bytes = &into.filled()[from..to];
        // A head in pieces has its own way, so here nothing is held yet.
        let (passed, refusal) = self.judge(bytes);
        match refusal {
            Some(refusal) => self.refuse(refusal),
            None => self.held.extend_from_slice(&bytes[passed..]),
        }
        into.set_filled(from + passed);
        Poll::Ready(Ok(passed > 0))
    }

    /// Reads more of a head that comes in pieces.
    fn read_piece(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut piece = [0; PIECE_BYTES];
        let mut buffer = ReadBuf::new(&mut piece);
        ready!(Pin::new(&mut self.connection).poll_read(context, &mut buffer))?;
        let count = buffer.filled().len();
        self.held.extend_from_slice(buffer.filled());
        let held = std::mem::take(&mut self.held);
        let (passed, refusal) = self.judge(&held);
        self.passed.extend_from_slice(&held[..passed]);
        match refusal {
            Some(refusal) => self.refuse(refusal),
            None => self.held = if passed == 0 { held } else { held[passed..].to_vec() },
        }
        Poll::Ready(Ok(count))
    }

    /// What becomes of a connection on which nothing comes: true if it rested too long.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        let begun = !self.held.is_empty();
        let patience = if begun { self.patience.head } else { self.patience.idle };
        loop {
            let waits = self.waits.filter(|(for_rest, _)| *for_rest == begun);
            let (_, since) = *self.waits.insert(waits.unwrap_or_else(|| (begun, Instant::now())));
            let until = since + patience;
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
            // One that was set for an earlier wait goes off early and is set again then, instead of at every request.
            if timer.deadline() > until {
                timer.as_mut().reset(until);
            }
            ready!(timer.as_mut().poll(context));
            if Instant::now() < until {
                timer.as_mut().reset(until);
            } else if begun || self.shared.rests() {
                return Poll::Ready(!begun);
            } else {
                self.waits = None;
            }
        }
    }

    /// Reads and drops, up to a bound. Done when nothing more comes.
    fn linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut piece = [0; PIECE_BYTES];
        while self.lingered < LINGER_BYTES_MAX {
            let mut buffer = ReadBuf::new(&mut piece);
            match ready!(Pin::new(&mut self.connection).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => self.lingered += buffer.filled().len(),
                _ => break,
            }
        }
        Poll::Ready(())
    }

    fn poll_head(&mut self, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        let read = if self.held.is_empty() {
            self.read_through(context, into)
        } else {
            match self.read_piece(context) {
                Poll::Ready(Ok(0)) => Poll::Ready(Ok(true)),
                Poll::Ready(Ok(_)) => Poll::Ready(Ok(false)),
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending => Poll::Pending,
            }
        };
        if read.is_ready() || !matches!(self.stage, Stage::Head(_) | Stage::Body(Framing::None)) {
            return read;
        }
        match ready!(self.wait(context)) {
            true => Poll::Ready(Ok(true)),
            false => {
                self.refuse(Refusal::Slow);
                Poll::Ready(Ok(false))
            }
        }
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Guard<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.deliver(into) {
                return Poll::Ready(Ok(()));
            }
            match self.stage {
                Stage::Open => return Pin::new(&mut self.connection).poll_read(context, into),
                Stage::Switching => {
                    self.shared.waker.register(context.waker());
                    if !self.shared.switched.load(Ordering::Acquire) {
                        return Poll::Pending;
                    }
                    self.stage = Stage::Open;
                }
                // The answer ends the connection; until then what still comes is dropped.
                Stage::Refused => {
                    ready!(self.linger(context));
                    return Poll::Pending;
                }
                Stage::Broken => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the body has no certain end",
                    )));
                }
                Stage::Head(_) | Stage::Body(_) => {
                    if ready!(self.poll_head(context, into))? {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.connection).poll_shutdown(context))?;
        let is_between = matches!(self.stage, Stage::Head(_) | Stage::Body(Framing::None) | Stage::Open);
        if is_between && self.held.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if !self.is_closing {
            self.is_closing = true;
            self.timer = Some(Box::pin(sleep_until(Instant::now() + LINGER_MAX)));
        }
        if let Poll::Ready(()) = self.linger(context) {
            return Poll::Ready(Ok(()));
        }
        match &mut self.timer {
            Some(timer) => timer.as_mut().poll(context).map(Ok),
            None => Poll::Ready(Ok(())),
        }
    }
}
