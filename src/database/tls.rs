//! How a server is connected to, from what its configuration says.

use super::error::{Error, Result, sources};
use super::server::Tls;
use crate::postgres::{Distrust, distrust};

pub(super) use crate::postgres::Connector;

/// How connections are opened, made once from a [`Tls`].
pub(super) fn connector(tls: &Tls) -> Result<Connector> {
    match tls {
        Tls::VerifyFull { ca_pem } => Connector::verifying(ca_pem).map_err(|Distrust(why)| Error::permanent(why)),
        Tls::Disable => Ok(Connector::Plain),
    }
}

/// What a failed connection to `host` means.
pub(super) fn explain(host: &str, port: u16, user: &str, error: &tokio_postgres::Error) -> Error {
    if error.as_db_error().is_some() {
        return Error::from_postgres(&format!("can't log in at {host}:{port} as {user}"), error);
    }
    match distrust(host, port, error) {
        Some(Distrust(why)) => Error::permanent(why),
        None => Error::transient(format!("{host}:{port} can't be reached: {}", sources(error))),
    }
}
