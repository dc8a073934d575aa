//! The SQL that reached PostgreSQL, by its log of statements.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Seek as _, SeekFrom},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use devcluster::Postgres;
use serde::Deserialize;
use tokio_postgres::{Client, NoTls};

use crate::ground::eventually;

/// A message of a client: one statement, or a script of several.
#[derive(Clone, Debug)]
pub struct Statement {
    /// When it arrived: `2026-11-22 16:09:27.123 UTC`.
    pub at: String,
    /// Tells one connection from another.
    pub session: String,
    pub user: String,
    pub database: String,
    pub text: String,
    /// The parameters of a statement that has some.
    pub parameters: Option<Vec<String>>,
}

/// PostgreSQL's log of statements, and a superuser who can switch it.
pub struct StatementLog {
    superuser: Client,
    folder: PathBuf,
}

#[derive(Deserialize)]
struct Line {
    timestamp: String,
    #[serde(default)]
    user: String,
    #[serde(default)]
    dbname: String,
    #[serde(default)]
    session_id: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    detail: String,
}

impl StatementLog {
    pub async fn of(postgres: &Postgres) -> Result<Self> {
        let superuser = connect(postgres, "postgres", postgres.superuser_password(), "postgres").await?;
        let folder: String = superuser.query_one("SHOW data_directory", &[]).await?.get(0);
        Ok(Self { superuser, folder: PathBuf::from(folder).join("log") })
    }

    /// Logs every statement from now on, or none.
    pub async fn switch(&self, on: bool) -> Result<()> {
        let value = if on { "all" } else { "none" };
        self.superuser.batch_execute(&format!("ALTER SYSTEM SET log_statement = '{value}'")).await?;
        self.superuser.batch_execute("SELECT pg_reload_conf()").await?;
        // Each process takes it in by itself: this one's answer shows that it was sent.
        eventually("PostgreSQL has its settings", async || {
            let now: String = self.superuser.query_one("SHOW log_statement", &[]).await?.get(0);
            Ok((now == value).then_some(()))
        })
        .await
    }

    /// The end of the log as it is now.
    pub fn mark(&self) -> Result<u64> {
        Ok(self.file()?.metadata()?.len())
    }

    /// What arrived since a mark, up to now.
    pub async fn since(&self, mark: u64) -> Result<Vec<Statement>> {
        // What this connection says comes last; when it is in the log, all before it is.
        let end = format!("SELECT 'end of the record at {mark}'");
        self.superuser.batch_execute("SET log_statement = 'all'").await?;
        self.superuser.batch_execute(&end).await?;
        self.superuser.batch_execute("RESET log_statement").await?;
        eventually("the log is written", async || {
            let mut file = self.file()?;
            file.seek(SeekFrom::Start(mark))?;
            let (mut found, mut complete) = (Vec::new(), false);
            for line in BufReader::new(file).lines() {
                let line = line?;
                complete |= line.contains(&end);
                // The last line may still be on its way.
                let Ok(line) = serde_json::from_str::<Line>(&line) else { continue };
                found.extend(line.statement()?);
            }
            Ok(complete.then_some(found))
        })
        .await
    }

    fn file(&self) -> Result<File> {
        let mut files: Vec<_> = fs::read_dir(&self.folder)?.collect::<std::io::Result<_>>()?;
        files.retain(|file| file.path().extension().is_some_and(|extension| extension == "json"));
        ensure!(files.len() == 1, "{} has {} logs", self.folder.display(), files.len());
        Ok(File::open(files[0].path())?)
    }
}

impl Line {
    fn statement(self) -> Result<Option<Statement>> {
        if self.user == "postgres" {
            return Ok(None);
        }
        let (text, parameters) = if let Some(text) = self.message.strip_prefix("statement: ") {
            (text.to_owned(), None)
        } else if let Some(text) = self.message.strip_prefix("execute <unnamed>: ") {
            (text.to_owned(), Some(parameters(&self.detail)?))
        } else {
            return Ok(None);
        };
        let (at, session) = (self.timestamp, self.session_id);
        Ok(Some(Statement { at, session, user: self.user, database: self.dbname, text, parameters }))
    }
}

/// Reads `parameters: $1 = 'a', $2 = 'b''c'`.
fn parameters(detail: &str) -> Result<Vec<String>> {
    let mut rest = detail.strip_prefix("parameters: ").or(detail.strip_prefix("Parameters: ")).unwrap_or_default();
    let mut found = Vec::new();
    while let Some((_, value)) = rest.split_once(" = '") {
        let mut text = String::new();
        let mut characters = value.char_indices();
        let end = loop {
            let (at, character) = characters.next().with_context(|| format!("parameters that don't end: {detail}"))?;
            match character {
                '\'' if value[at + 1..].starts_with('\'') => {
                    text.push('\'');
                    characters.next();
                }
                '\'' => break at + 1,
                other => text.push(other),
            }
        };
        found.push(text);
        rest = &value[end..];
    }
    Ok(found)
}

/// How many statements a message has: the lines of a script end in semicolons.
pub fn count(text: &str) -> usize {
    text.lines().filter(|line| line.ends_with(';')).count() + 1
}

/// Logs in without TLS, to look at what is there.
pub async fn connect(postgres: &Postgres, user: &str, password: &str, database: &str) -> Result<Client> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(postgres.port()).user(user).password(password).dbname(database);
    config.connect_timeout(Duration::from_secs(10));
    let (client, connection) = config.connect(NoTls).await.with_context(|| format!("log in as {user}"))?;
    tokio::spawn(async move { connection.await.ok() });
    Ok(client)
}
