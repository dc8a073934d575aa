//! As much of HTTP as the demo needs: one request, one answer, one connection.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What a server answered.
pub(super) struct Answer {
    /// The status code.
    pub(super) status: u16,
    /// The body.
    pub(super) body: String,
}

impl Answer {
    /// Nothing when the status says success; else what was answered.
    pub(super) fn success(self) -> Result<(), String> {
        match self.status {
            200..300 => Ok(()),
            status => Err(format!("status {status}: {}", self.body.trim())),
        }
    }
}

/// Gets a path from a port on 127.0.0.1.
pub(super) fn get(port: u16, host: &str, path: &str) -> Result<Answer, String> {
    send(port, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
}

/// Deletes a path of a port on 127.0.0.1.
pub(super) fn delete(port: u16, host: &str, path: &str) -> Result<Answer, String> {
    send(port, &format!("DELETE {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
}

/// Posts JSON to a path of a port on 127.0.0.1.
pub(super) fn post(port: u16, host: &str, path: &str, body: &str) -> Result<Answer, String> {
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    send(port, &format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"))
}

fn send(port: u16, request: &str) -> Result<Answer, String> {
    let exchange = || -> std::io::Result<String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = exchange().map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("an incomplete answer")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or("no HTTP")?;
    Ok(Answer { status, body: body.to_owned() })
}
