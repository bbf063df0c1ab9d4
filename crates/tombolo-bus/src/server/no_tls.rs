//! In the place of `tls`, in a build without it: there is nothing that could seal a connection.
//!
//! Invariant: a server's seal cannot be made here, and a client says that it has none.

use tokio::net::TcpStream;

use crate::{Error, Kind, Result};

/// What a server seals its connections with: nothing, in this build.
#[derive(Debug, Clone)]
pub enum Seal {}

impl Seal {
    /// Reads the files again whenever they change, until it is dropped.
    pub async fn follow(&self) {
        match *self {}
    }

    pub(super) async fn accept(&self, _stream: TcpStream) -> std::io::Result<TcpStream> {
        match *self {}
    }
}

/// What a client's certificate says: none is ever verified in this build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientCertificate {}

impl ClientCertificate {
    pub(super) fn of(_stream: &TcpStream) -> Option<Self> {
        None
    }

    /// Whether it was given out for this name.
    #[must_use]
    pub fn is_for(&self, _name: &str) -> bool {
        match *self {}
    }
}

/// Whom a client trusts, and what it shows: nothing, in this build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {}

impl Trust {
    pub(super) fn connector(&self) -> Result<Connector> {
        Err(Error::new(Kind::Configuration, ABSENT))
    }
}

/// What would connect.
#[derive(Debug, Clone)]
pub(super) struct Connector;

const ABSENT: &str = "this build has no TLS; enable the feature `tls` of tombolo-bus, or use tombolo:// behind something that seals";

pub(super) async fn connect(_connector: Connector, _host: String, _port: u16) -> std::io::Result<TcpStream> {
    Err(std::io::Error::new(std::io::ErrorKind::Unsupported, ABSENT))
}
