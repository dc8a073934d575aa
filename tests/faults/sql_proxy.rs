//! A way to PostgreSQL, without TLS, that understands what passes: the statements that write are
//! counted at a gate, and cut off or held there.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    task::JoinHandle,
};

use super::gate::{Gate, Happening, Verdict};

/// Words that a statement begins with if it changes something.
const WRITES: [&str; 10] =
    ["INSERT", "UPDATE", "DELETE", "CREATE", "ALTER", "DROP", "GRANT", "REVOKE", "COMMENT", "DO"];

pub struct SqlProxy {
    pub port: u16,
    cut: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl SqlProxy {
    /// Leads to a server at this host and port.
    pub async fn start(host: &str, port: u16, gate: Arc<Gate>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let own = listener.local_addr().expect("an address").port();
        let (cut, _) = watch::channel(0);
        let (host, cuts) = (host.to_owned(), cut.clone());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (host, gate, mut cut) = (host.clone(), Arc::clone(&gate), cuts.subscribe());
                tokio::spawn(async move {
                    // A server that is away closes the client's connection, as it would itself.
                    let Ok(server) = TcpStream::connect((host.as_str(), port)).await else { return };
                    tokio::select! {
                        _ = relay(client, server, &gate) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { port: own, cut, task }
    }

    /// Cuts every connection that there is.
    pub fn cut_all(&self) {
        self.cut.send_modify(|times| *times += 1);
    }
}

impl Drop for SqlProxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut_all();
    }
}

/// One message: its type (nothing for the first of a connection), and all of its bytes.
struct Message {
    kind: Option<u8>,
    bytes: Vec<u8>,
}

impl Message {
    async fn read(from: &mut (impl AsyncRead + Unpin), first: bool) -> io::Result<Self> {
        let mut bytes = Vec::new();
        let kind = if first { None } else { Some(from.read_u8().await?) };
        bytes.extend(kind);
        let length = from.read_u32().await?;
        bytes.extend(length.to_be_bytes());
        let rest =
            usize::try_from(length).ok().and_then(|length| length.checked_sub(4)).ok_or(io::ErrorKind::InvalidData)?;
        let start = bytes.len();
        bytes.resize(start + rest, 0);
        from.read_exact(&mut bytes[start..]).await?;
        Ok(Self { kind, bytes })
    }

    /// The text of a simple query, or of a statement that is prepared.
    fn statement(&self) -> Option<String> {
        let body = self.bytes.get(5..)?;
        let text = match self.kind? {
            b'Q' => body,
            b'P' => &body[body.iter().position(|byte| *byte == 0)? + 1..],
            _ => return None,
        };
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

/// Whether a statement of a text changes something.
fn writes(text: &str) -> bool {
    let begins = |statement: &str| WRITES.iter().any(|word| statement.trim_start().starts_with(word));
    text.split(';').any(begins)
}

/// A write in few words.
fn describe(text: &str) -> String {
    let statements =
        text.split(';').map(str::trim).filter(|statement| WRITES.iter().any(|word| statement.starts_with(word)));
    let heads = statements.map(|statement| statement.split_whitespace().take(3).collect::<Vec<_>>().join(" "));
    format!("SQL {}", heads.take(3).collect::<Vec<_>>().join(", "))
}

async fn relay(client: TcpStream, server: TcpStream, gate: &Gate) -> io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    // Whether the server's answers reach nobody any more, and that one is complete.
    let (withheld, answered) = (AtomicBool::new(false), Notify::new());
    let requests = async {
        let mut first = true;
        loop {
            let message = Message::read(&mut from_client, first).await?;
            first = false;
            let text = message.statement().unwrap_or_default();
            match gate.judge(writes(&text), &text, || describe(&text)) {
                Verdict::Pass => to_server.write_all(&message.bytes).await?,
                Verdict::Hold => return swallow(&mut from_client).await,
                Verdict::Happens(Happening::CutBefore) => break,
                Verdict::Happens(Happening::CutHalfway) => {
                    to_server.write_all(&message.bytes[..message.bytes.len() / 2]).await?;
                    break;
                }
                Verdict::Happens(happening) => {
                    withheld.store(true, Ordering::SeqCst);
                    to_server.write_all(&message.bytes).await?;
                    answered.notified().await;
                    if happening == Happening::Last {
                        gate.happened();
                        return swallow(&mut from_client).await;
                    }
                    break;
                }
            }
        }
        gate.happened();
        Ok(())
    };
    let answers = async {
        loop {
            let message = Message::read(&mut from_server, false).await?;
            if !withheld.load(Ordering::SeqCst) {
                to_client.write_all(&message.bytes).await?;
            } else if message.kind == Some(b'Z') {
                answered.notify_one();
            }
        }
    };
    tokio::select! {
        done = requests => done,
        done = answers => done,
    }
}

/// Reads until the client is gone.
async fn swallow(from: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    tokio::io::copy(from, &mut tokio::io::sink()).await.map(drop)
}
