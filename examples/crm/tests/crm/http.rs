//! An HTTP client that sends what it is told to, valid or not.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// The body, if the answer is this status; else a panic that shows the answer.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}\n{}", self.head, self.body);
        if self.body.is_empty() { Value::Null } else { self.json() }
    }
}

/// Sends these bytes and reads the answer to its end.
pub async fn raw(server: SocketAddr, request: &[u8]) -> Response {
    let mut stream = TcpStream::connect(server).await.expect("the CRM listens");
    stream.write_all(request).await.expect("the CRM reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("the CRM answers");
    let answer = String::from_utf8(answer).expect("an answer is text");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
    Response { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

pub async fn request(server: SocketAddr, method: &str, host: &str, path: &str, body: &str) -> Response {
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    raw(server, request.as_bytes()).await
}

pub async fn get(server: SocketAddr, host: &str, path: &str) -> Response {
    request(server, "GET", host, path, "").await
}
