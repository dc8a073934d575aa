//! A way to PostgreSQL, without TLS, that understands what passes: the statements that write are
//! counted at a gate, and cut off, held or kept from their COMMIT there.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    time::Duration,
};

use devcluster::Postgres;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    task::JoinHandle,
};
use tokio_postgres::{Client, Config, NoTls};

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
    /// Leads to a server.
    pub async fn start(postgres: &Postgres, gate: Arc<Gate>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let own = listener.local_addr().expect("an address").port();
        let (cut, _) = watch::channel(0);
        let (host, port, cuts) = (postgres.host().to_owned(), postgres.port(), cut.clone());
        let mut superuser = Config::new();
        superuser.host(&host).port(port).user("postgres").password(postgres.superuser_password());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (host, gate, superuser) = (host.clone(), Arc::clone(&gate), superuser.clone());
                let mut cut = cuts.subscribe();
                tokio::spawn(async move {
                    // A server that is away closes the client's connection, as it would itself.
                    let Ok(server) = TcpStream::connect((host.as_str(), port)).await else { return };
                    tokio::select! {
                        _ = relay(client, server, &gate, &superuser) => {}
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

    /// Of the first message of a connection: the database that it is for.
    fn database(&self) -> Option<String> {
        // After length and version: names and values in turn.
        let texts: Vec<_> = self.bytes.get(8..)?.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        texts.chunks_exact(2).find(|pair| pair[0] == "database").map(|pair| pair[1].clone().into_owned())
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

/// Keeps one transaction from its COMMIT.
struct Bar {
    session: Client,
    key: i32,
}

impl Bar {
    /// A bar in this database, that nothing stands before yet.
    async fn put(superuser: &Config, database: &str) -> Self {
        static KEYS: AtomicI32 = AtomicI32::new(1);
        let key = KEYS.fetch_add(1, Ordering::SeqCst);
        let (session, connection) =
            superuser.clone().dbname(database).connect(NoTls).await.expect("the superuser logs in");
        tokio::spawn(async move { connection.await.ok() });
        session.execute(&format!("SELECT pg_advisory_lock({key})"), &[]).await.expect("a lock");
        Self { session, key }
    }

    /// The message of a whole transaction, with this bar before its end.
    fn before_commit(&self, message: &Message) -> Vec<u8> {
        let text = message.statement().filter(|_| message.kind == Some(b'Q')).expect("a simple query");
        let text = text.trim_end_matches('\0').strip_suffix("COMMIT").expect("a whole transaction").to_owned();
        let text = format!("{text}SELECT pg_catalog.pg_advisory_xact_lock({}); COMMIT\0", self.key);
        let length = u32::try_from(text.len() + 4).expect("a short text");
        [&b"Q"[..], &length.to_be_bytes(), text.as_bytes()].concat()
    }

    /// Waits until a transaction stands before it: open, and with everything done. One that fails
    /// on its way never does.
    async fn is_reached(&self) {
        let waits =
            format!("SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = {} AND NOT granted", self.key);
        while self.session.query(&waits, &[]).await.expect("the superuser's session").is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Lets the transaction go on.
    async fn lift(self) {
        self.session.execute("SELECT pg_advisory_unlock_all()", &[]).await.expect("it held a lock");
    }
}

/// The statements of a text that change something. Every transaction begins with a line that finds
/// out whether its operator still leads, and in whose database it is.
fn changes(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.contains("PERFORM FROM tenantry.database WHERE cluster_id"));
    let text = lines.collect::<Vec<_>>().join("\n");
    let statements = text.split(';').map(str::trim).filter(|it| WRITES.iter().any(|word| it.starts_with(word)));
    statements.map(str::to_owned).collect()
}

/// A write in few words.
fn describe(text: &str) -> String {
    let changes = changes(text);
    let heads = changes.iter().map(|change| change.split_whitespace().take(3).collect::<Vec<_>>().join(" "));
    format!("SQL {}", heads.take(3).collect::<Vec<_>>().join(", "))
}

/// Passes on what comes, until one side ends or it is cut off.
async fn relay(client: TcpStream, server: TcpStream, gate: &Gate, superuser: &Config) -> io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    // Whether the server's answers reach nobody any more, and that one is complete.
    let (withheld, answered) = (AtomicBool::new(false), Notify::new());
    let requests = async {
        let first = Message::read(&mut from_client, true).await?;
        let database = first.database().unwrap_or_default();
        to_server.write_all(&first.bytes).await?;
        loop {
            let message = Message::read(&mut from_client, false).await?;
            let text = message.statement().unwrap_or_default();
            // A tenant is known by the name of its database as well.
            let event = match gate.judge(!changes(&text).is_empty(), &format!("{database} {text}"), || describe(&text))
            {
                Verdict::Pass => {
                    to_server.write_all(&message.bytes).await?;
                    continue;
                }
                Verdict::Hold => return swallow(&mut from_client).await,
                Verdict::Happens(event) => event,
            };
            withheld.store(true, Ordering::SeqCst);
            match event.happening {
                Happening::CutBefore => {}
                Happening::CutHalfway => to_server.write_all(&message.bytes[..message.bytes.len() / 2]).await?,
                Happening::CutAfter | Happening::Last => {
                    to_server.write_all(&message.bytes).await?;
                    answered.notified().await;
                }
                Happening::CutWithin | Happening::Open => {
                    let bar = Bar::put(superuser, &database).await;
                    to_server.write_all(&bar.before_commit(&message)).await?;
                    tokio::select! {
                        () = bar.is_reached() => {}
                        // It failed before: then this didn't happen.
                        () = answered.notified() => return Ok(()),
                    }
                    if event.happening == Happening::Open {
                        event.happened();
                        // The bar stands for as long as the connection.
                        let swallowed = swallow(&mut from_client).await;
                        drop(bar);
                        return swallowed;
                    }
                    let next = event.next_write();
                    tokio::spawn(async move {
                        next.await;
                        bar.lift().await;
                    });
                }
            }
            event.happened();
            return match event.happening {
                Happening::Last => swallow(&mut from_client).await,
                _ => Ok(()),
            };
        }
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
