//! Free loopback ports and secrets for the private servers. Invariant: nothing here ever binds or
//! names anything but 127.0.0.1.

use crate::{Context, Error};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

const GREETING_BOUND: Duration = Duration::from_secs(1);

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

/// What a server says first to who connects and sends `hello`: as many bytes as `greeting` is long; whether they came.
pub(super) fn greeted(port: u16, hello: &[u8], greeting: &mut [u8]) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Ok(mut stream) = TcpStream::connect_timeout(&address, GREETING_BOUND) else { return false };
    stream.set_read_timeout(Some(GREETING_BOUND)).is_ok()
        && stream.write_all(hello).is_ok()
        && stream.read_exact(greeting).is_ok()
}
