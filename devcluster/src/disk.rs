//! Room on file systems.

use std::path::Path;

use crate::Error;

const MIB: u64 = 1024 * 1024;

/// The bytes that may still be written where `path` is or will be; `None` when the
/// file system doesn't tell.
pub(crate) fn free(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|folder| folder.exists())?;
    let room = rustix::fs::statvfs(existing).ok()?;
    Some(room.f_bavail.saturating_mul(room.f_frsize))
}

/// Refuses to begin what would fail half-way for want of room.
pub(crate) fn require(path: &Path, bytes: u64, purpose: &'static str) -> Result<(), Error> {
    match free(path) {
        Some(free) if free < bytes => {
            Err(Error::NoRoom { path: path.to_owned(), free_mib: free / MIB, needed_mib: bytes / MIB, purpose })
        }
        _ => Ok(()),
    }
}
