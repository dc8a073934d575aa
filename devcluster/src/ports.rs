//! Ports on the loopback address, each held for the program that it is meant for.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};

use crate::Error;

/// A port that no other process of this machine gets while this value, or a copy of it, lives:
/// neither one that asks for any port, nor a connection that goes out. The program that it is
/// meant for listens on it, as often as it starts, if it sets `SO_REUSEADDR` as servers do.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    number: u16,
    /// Bound, and never listening: who connects while the program is away is refused.
    _held: Arc<OwnedFd>,
}

impl Port {
    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}

/// A port for `program` that nobody has: the one that was asked for, or any.
pub(crate) fn choose(program: &str, wanted: Option<u16>) -> Result<Port, Error> {
    hold(wanted.unwrap_or(0)).map_err(|error| match wanted {
        Some(port) if error == rustix::io::Errno::ADDRINUSE => Error::PortTaken { program: program.to_owned(), port },
        _ => Error::Missing {
            what: format!("no port on 127.0.0.1 for {program}: {error}"),
            hint: "check the network settings of this machine".into(),
        },
    })
}

fn hold(wanted: u16) -> rustix::io::Result<Port> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, wanted))?;
    let number = SocketAddr::try_from(getsockname(&socket)?)?.port();
    Ok(Port { number, _held: Arc::new(socket) })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn address(port: &Port) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, port.number())
    }

    #[test]
    fn who_it_is_meant_for_listens_again_and_again_and_meanwhile_it_is_refused() {
        let port = choose("a program", None).expect("a port");
        for _ in 0..3 {
            TcpStream::connect(address(&port)).expect_err("nobody listens");
            let listener = TcpListener::bind(address(&port)).expect("it may listen");
            let (_client, _server) =
                (TcpStream::connect(address(&port)).expect("a client"), listener.accept().expect("its connection"));
        }
    }

    #[test]
    fn nobody_else_gets_it() {
        // So many that some would be met by chance, and not more files than a process may open.
        let ports: Vec<_> = (0..250).map(|_| choose("a program", None).expect("a port")).collect();
        let held: HashSet<_> = ports.iter().map(Port::number).collect();
        assert_eq!(held.len(), ports.len(), "each once");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("any port");
        let to = listener.local_addr().expect("an address");
        let connection = || (TcpStream::connect(to).expect("a client"), listener.accept().expect("its connection"));
        let connections: Vec<_> = (0..200).map(|_| connection()).collect();
        let others: Vec<_> = (0..200).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("any port")).collect();
        let taken =
            connections.iter().map(|(client, _)| client.local_addr()).chain(others.iter().map(TcpListener::local_addr));
        for taken in taken {
            assert!(!held.contains(&taken.expect("an address").port()));
        }
    }

    #[test]
    fn one_that_somebody_listens_on_is_named() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("any port");
        let port = listener.local_addr().expect("an address").port();
        let error = choose("a program", Some(port)).expect_err("it is taken");
        assert!(matches!(error, Error::PortTaken { port: taken, .. } if taken == port), "{error}");
    }
}
