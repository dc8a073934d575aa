//! The relay's token: a file that the kubelet, or somebody else, renews.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderValue;

/// How long a token that was read is used before the file is read again.
const FRESH: Duration = Duration::from_secs(10);

/// Reads the file again and again; what was read last is kept for a moment.
pub(super) struct Token {
    path: PathBuf,
    read: Mutex<Option<(Instant, HeaderValue)>>,
}

impl Token {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, read: Mutex::default() }
    }

    /// The header `Authorization`.
    pub(super) async fn header(&self) -> Result<HeaderValue, String> {
        let lock = || self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, header)) = &*lock()
            && read.elapsed() < FRESH
        {
            return Ok(header.clone());
        }
        let path = self.path.display();
        let text = tokio::fs::read_to_string(&self.path).await;
        let text = text.map_err(|error| format!("can't read the token: {path}: {error}; name it with --token-file"))?;
        let header = HeaderValue::try_from(format!("Bearer {}", text.trim()));
        let mut header = header.map_err(|_| format!("{path} holds no token: it has characters that none has"))?;
        header.set_sensitive(true);
        *lock() = Some((Instant::now(), header.clone()));
        Ok(header)
    }

    /// What was read last was refused: the file may have a newer one.
    pub(super) fn refused(&self) {
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
