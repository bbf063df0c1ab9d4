//! A door between a service and its database server, which can be shut: connections break, and new ones are refused.
//!
//! Invariant: what goes through is not looked at; shut, nothing goes through.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use reqwest::Url;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::process::Outcome;

/// A door that is open or shut.
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    server: (String, u16),
    /// Whoever lets connections through; ends them when it is dropped.
    keeper: Mutex<JoinSet<()>>,
}

impl Door {
    /// An open door to a server.
    pub(crate) async fn to(server: &Url) -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let door = Self {
            address: listener.local_addr()?,
            server: server
                .host_str()
                .zip(server.port())
                .map(|(host, port)| (host.to_owned(), port))
                .ok_or("a server has a port")?,
            keeper: Mutex::default(),
        };
        door.keep(listener);
        Ok(door)
    }

    /// Breaks what goes through, and refuses whoever comes.
    pub(crate) fn shut(&self) {
        drop(std::mem::take(&mut *self.keeper.lock().unwrap_or_else(PoisonError::into_inner)));
    }

    pub(crate) async fn open(&self) -> Outcome<()> {
        self.keep(TcpListener::bind(self.address).await?);
        Ok(())
    }

    fn keep(&self, listener: TcpListener) {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner).spawn(keep(listener, self.server.clone()));
    }
}

async fn keep(listener: TcpListener, server: (String, u16)) {
    let mut passing = JoinSet::new();
    while let Ok((mut client, _)) = listener.accept().await {
        while passing.try_join_next().is_some() {}
        let server = server.clone();
        passing.spawn(async move {
            let (host, port) = server;
            if let Ok(mut server) = TcpStream::connect((host.as_str(), port)).await {
                copy_bidirectional(&mut client, &mut server).await.ok();
            }
        });
    }
}
