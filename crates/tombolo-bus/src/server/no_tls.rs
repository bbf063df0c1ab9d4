//! In the place of `tls`, in a build without it: there is nothing that could seal a connection.
//!
//! Invariant: what stands here cannot be made, so whoever has one has TLS.

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
    pub(super) fn connector(&self) -> Result<Never> {
        let message = "this build has no TLS; enable the feature `tls` of tombolo-bus, or use tombolo:// behind something that seals";
        Err(Error::new(Kind::Configuration, message))
    }
}

/// What there is none of.
#[derive(Debug, Clone)]
pub(super) enum Never {}

pub(super) async fn connect(connector: Never, _host: String, _port: u16) -> std::io::Result<TcpStream> {
    match connector {}
}
