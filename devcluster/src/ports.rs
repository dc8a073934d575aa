//! Free ports on the loopback address.

use std::net::{Ipv4Addr, TcpListener};

use crate::Error;

/// A port that nobody listens on at this moment, for `program`: the one that was asked
/// for, or any. It may be lost to another process before it is used; callers who took
/// any try again with another.
pub(crate) fn choose(program: &str, wanted: Option<u16>) -> Result<u16, Error> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, wanted.unwrap_or(0)))
        .and_then(|listener| Ok(listener.local_addr()?.port()))
        .map_err(|source| match wanted {
            Some(port) if source.kind() == std::io::ErrorKind::AddrInUse => {
                Error::PortTaken { program: program.to_owned(), port }
            }
            _ => Error::Missing {
                what: format!("no port on 127.0.0.1 for {program}: {source}"),
                hint: "check the network settings of this machine".into(),
            },
        })
}
