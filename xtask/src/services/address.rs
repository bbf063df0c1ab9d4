//! Free loopback ports and secrets for the private servers. Invariant: nothing here ever binds or
//! names anything but 127.0.0.1.

use crate::error::{Context, Error};
use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};

/// Somebody may take a free port before our server does; then another one is tried.
pub(super) const START_TRIES: u32 = 3;

pub(super) fn free_port() -> Result<u16, Error> {
    let doing = || "find a free port on 127.0.0.1".to_owned();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context(doing)?;
    Ok(listener.local_addr().context(doing)?.port())
}

/// 128 random bits in hexadecimal.
pub(super) fn secret() -> Result<String, Error> {
    let mut bytes = [0; 16];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.context(|| "read /dev/urandom".into())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
