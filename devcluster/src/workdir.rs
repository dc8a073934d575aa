//! Folders that belong to one running ground: locked while it lives, recognised as
//! left over when its process was killed.
//!
//! The file `lock` in a folder marks it as ours and is locked (flock) by its owner. The
//! kernel drops that lock when the owner ends, however that happens; so whether
//! somebody still uses a folder is never a guess from a process id.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::{Error, process, shm};

const LOCK: &str = "lock";
const MARK: &str = "devcluster";
const PREFIX: &str = "devcluster-";

/// What a ground makes in its folder; nothing else in there is ever removed.
const OURS: &[&str] = &[
    "audit-policy.yaml",
    "audit.log",
    "demo",
    ".env-fresh",
    "env",
    "etcd",
    "kubeconfig",
    "kubeconfigs",
    "log",
    "pki",
    "postgres",
    "postgres-ca.crt",
    "postgres.log",
    "stages.yaml",
];
/// What stays for reading after an orderly end.
const KEPT: &[&str] = &["audit.log", "log", "postgres.log"];

/// A folder held by this process.
#[derive(Debug)]
pub(crate) struct Workdir {
    path: PathBuf,
    lock: File,
    temporary: bool,
    /// Whether a killed process had left files here, which were removed.
    pub(crate) was_stale: bool,
}

impl Workdir {
    /// A new folder below `parent` that is removed on drop. Those that killed
    /// processes of this user left there are removed first.
    pub(crate) fn temporary(parent: &Path) -> Result<Workdir, Error> {
        sweep(parent);
        // It gets its final name when it is locked: a sweep by another process never
        // takes it for a left-over.
        let fresh = tempfile::Builder::new()
            .prefix(".devcluster-new-")
            .tempdir_in(parent)
            .map_err(Error::file("make a folder in", parent))?;
        // Whatever the umask: PostgreSQL's account must get through to its own folder.
        fs::set_permissions(fresh.path(), fs::Permissions::from_mode(0o711))
            .map_err(Error::file("change the mode of", fresh.path()))?;
        let lock = open_lock(&fresh.path().join(LOCK))?;
        lock.try_lock().map_err(|error| Error::file("lock", fresh.path())(error.into()))?;
        let suffix = fresh
            .path()
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.rsplit('-').next())
            .expect("tempfile keeps the prefix");
        let path = parent.join(format!("{PREFIX}{}-{suffix}", std::process::id()));
        let unnamed = fresh.keep();
        fs::rename(&unnamed, &path).map_err(Error::file("rename", &unnamed))?;
        let mut workdir = Workdir { path, lock, temporary: true, was_stale: false };
        workdir.mark(Some(std::process::id()))?;
        Ok(workdir)
    }

    /// Takes the folder that a user named: new, empty, or left by an earlier ground.
    pub(crate) fn claim(dir: &Path) -> Result<Workdir, Error> {
        let dir = std::path::absolute(dir).map_err(Error::file("find", dir))?;
        fs::create_dir_all(&dir).map_err(Error::file("make", &dir))?;
        let lock_path = dir.join(LOCK);
        if !lock_path.exists() {
            let mut entries = fs::read_dir(&dir).map_err(Error::file("read", &dir))?;
            if let Some(entry) = entries.next() {
                let entry = entry.map_err(Error::file("read", &dir))?.file_name().into();
                return Err(Error::Foreign { dir, entry });
            }
        } else if read_mark(&lock_path).is_none() {
            return Err(Error::Foreign { dir, entry: LOCK.into() });
        }
        let lock = open_lock(&lock_path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = read_mark(&lock_path).flatten();
                return Err(Error::InUse { dir, pid });
            }
            Err(TryLockError::Error(error)) => return Err(Error::file("lock", &lock_path)(error)),
        }
        let was_stale = read_mark(&lock_path).flatten().is_some();
        let mut workdir = Workdir { path: dir, lock, temporary: false, was_stale };
        workdir.clean(&[])?;
        workdir.mark(Some(std::process::id()))?;
        Ok(workdir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes what a ground makes, except `keep`.
    fn clean(&self, keep: &[&str]) -> Result<(), Error> {
        shm::release(&self.path);
        for name in OURS.iter().filter(|name| !keep.contains(name)) {
            remove(&self.path.join(name))?;
        }
        Ok(())
    }

    fn mark(&mut self, pid: Option<u32>) -> Result<(), Error> {
        let text = pid.map_or_else(|| format!("{MARK}\n"), |pid| format!("{MARK} {pid}\n"));
        let mut write = || {
            self.lock.set_len(0)?;
            self.lock.rewind()?;
            self.lock.write_all(text.as_bytes())
        };
        write().map_err(Error::file("write", &self.path.join(LOCK)))
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        if self.temporary {
            // Nobody is left to tell; the next sweep tries again.
            let _ = fs::remove_dir_all(&self.path);
        } else if self.clean(KEPT).is_ok() {
            let _ = self.mark(None);
        }
        // To close the file is not enough: a process that another thread is just starting has a copy
        // of it until it runs its own program, and would hold the lock until then.
        let _ = self.lock.unlock();
    }
}

/// Asks the process that runs a ground in this folder to end, and waits until it has.
pub(crate) fn end_owner(dir: &Path) -> Result<(), Error> {
    let lock_path = dir.join(LOCK);
    let not_running = |known| Error::NotRunning { dir: dir.to_owned(), known };
    let Some(pid) = read_mark(&lock_path) else {
        return Err(not_running(false));
    };
    let lock = File::open(&lock_path).map_err(Error::file("read", &lock_path))?;
    match lock.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {}
        Ok(()) => {
            let _ = lock.unlock();
            return Err(not_running(true));
        }
        Err(TryLockError::Error(error)) => return Err(Error::file("lock", &lock_path)(error)),
    }
    // The lock is held, so the process lives and its id is its own.
    let Some(owner) = pid.and_then(process::open) else {
        return Err(not_running(true));
    };
    process::signal(&owner, Signal::TERM);
    process::exited(&owner, None);
    Ok(())
}

/// Removes the folders that killed processes of this user left in `parent`.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    let me = rustix::process::geteuid().as_raw();
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX)
            && entry.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == me);
        let lock_path = entry.path().join(LOCK);
        if !ours || read_mark(&lock_path).is_none() {
            continue;
        }
        // Held until the folder is gone, so two sweeps don't meet in it.
        let Ok(lock) = File::open(&lock_path) else {
            continue;
        };
        if lock.try_lock().is_ok() {
            shm::release(&entry.path());
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn open_lock(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(Error::file("write", path))
}

/// `None`: not our mark. `Some(None)`: ended in order. `Some(Some(pid))`: not so (yet).
fn read_mark(path: &Path) -> Option<Option<u32>> {
    let mut text = String::new();
    File::open(path).ok()?.take(64).read_to_string(&mut text).ok()?;
    let mut words = text.split_whitespace();
    match words.next() {
        // Made, and its maker ended before the first write.
        None => Some(None),
        Some(MARK) => Some(words.next().and_then(|pid| pid.parse().ok())),
        Some(_) => None,
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    let result = match path.symlink_metadata() {
        Err(_) => return Ok(()),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    result.map_err(Error::file("remove", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_free_again_while_a_process_that_is_starting_has_a_copy_of_its_lock() {
        let parent = tempfile::tempdir().expect("a folder");
        let dir = parent.path().join("ground");
        let workdir = Workdir::claim(&dir).expect("new");
        // What a fork has until it executes another program.
        let copy = workdir.lock.try_clone().expect("a copy");
        assert!(matches!(Workdir::claim(&dir), Err(Error::InUse { pid: Some(_), .. })));
        drop(workdir);
        Workdir::claim(&dir).expect("free");
        drop(copy);
    }
}
