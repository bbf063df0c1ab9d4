//! Taking mail: the dialogue of SMTP, which `mailin` knows, over connections, which are ours.
//!
//! Invariant: every line, mail and connection has a bound; one client that misbehaves ends only its own connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mailin::{Action, Handler, Response, SessionBuilder, response};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::mailbox::Mailbox;

/// The most connections at once; others wait.
const CONNECTIONS_MAX: usize = 256;
/// The longest line, in bytes.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// The largest mail, in bytes.
const MAIL_BYTES_MAX: usize = 1 << 20;
/// How long a client may say nothing.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Takes mail until that fails.
pub(crate) async fn take(listener: TcpListener, mailbox: Mailbox) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut clients = JoinSet::new();
    loop {
        let permit = Arc::clone(&room).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, from) = listener.accept().await?;
        let mailbox = mailbox.clone();
        clients.spawn(async move {
            if let Err(error) = talk(stream, from, mailbox).await {
                eprintln!("shop-mail: {from}: {error}");
            }
            drop(permit);
        });
        while clients.try_join_next().is_some() {}
    }
}

async fn talk(stream: TcpStream, from: SocketAddr, mailbox: Mailbox) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut session = SessionBuilder::new("shop-mail").build(from.ip(), Taking { mailbox, mail: Vec::new() });
    let mut answer = session.greeting();
    loop {
        if answer.action != Action::NoReply {
            write.write_all(&answer.buffer()?).await?;
        }
        if answer.action == Action::Close {
            return Ok(());
        }
        let mut line = Vec::new();
        let mut bounded = (&mut read).take(LINE_BYTES_MAX);
        timeout(SILENCE_MAX, bounded.read_until(b'\n', &mut line)).await??;
        if line.last() != Some(&b'\n') {
            // The client has gone, or its line has no end.
            return Ok(());
        }
        answer = session.process(&line);
    }
}

/// The mail that a client is sending.
struct Taking {
    mailbox: Mailbox,
    mail: Vec<u8>,
}

impl Handler for Taking {
    fn data_start(&mut self, _domain: &str, _from: &str, _is8bit: bool, _to: &[String]) -> Response {
        self.mail.clear();
        response::OK
    }

    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.mail.len() + bytes.len() > MAIL_BYTES_MAX {
            return Err(io::Error::other(format!("the mail is larger than {MAIL_BYTES_MAX} bytes")));
        }
        self.mail.extend_from_slice(bytes);
        Ok(())
    }

    fn data_end(&mut self) -> Response {
        match self.mailbox.keep(&self.mail) {
            Ok(()) => response::OK,
            Err(error) => Response::custom(554, error.to_owned()),
        }
    }
}
