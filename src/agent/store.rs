//! The folder that applications read: every change of it is one rename, so that readers see all of it or nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::binding::Version;
use super::plan::{Disk, Operation, host_target, tenant_target};

const TENANTS: &str = "tenants";
const HOSTS: &str = "hosts";
const VERSIONS: &str = ".versions";
/// Begins the name of everything that isn't complete yet.
const UNFINISHED: &str = ".tmp-";
pub(super) const LOCK: &str = ".agent.lock";
pub(super) const STATUS: &str = ".agent.json";

/// Owner and group read: the application runs with another uid than the agent, and shares the volume's fsGroup.
const FILE_MODE: u32 = 0o440;
const FOLDER_MODE: u32 = 0o750;
/// New files get the group of a folder with this bit, which is how an fsGroup reaches them.
const SET_GROUP_ID: u32 = 0o2000;

/// Why the folder could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("cannot {action} {path}: {source}{}", advice(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something that no agent has put there.
    #[error("{0} is not made by tenantry agent; give the agent a folder of its own (--dir)")]
    Foreign(PathBuf),
    /// Two agents would undo each other's work.
    #[error("another tenantry agent keeps {0}; stop it, or give this one a folder of its own (--dir)")]
    Taken(PathBuf),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => "; enlarge the volume (sizeLimit of the emptyDir)",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; the agent needs a volume that its user or group (fsGroup) may write"
        }
        _ => "",
    }
}

trait At<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Io { action, path: path.to_owned(), source })
    }
}

/// The agent's folder, locked for this process, with a model of what is in it.
pub struct Store {
    dir: PathBuf,
    disk: Disk,
    /// Versions whose content this process has written or compared.
    verified: BTreeSet<Version>,
    /// Versions that nothing leads to, and when they go.
    retired: BTreeMap<Version, Instant>,
    /// Where each key was written last. Most of what tenants of a pool have is the same (server, port, authority), and takes
    /// its room once where files share it by hard links.
    latest: BTreeMap<String, PathBuf>,
    linger: Duration,
    unfinished: u64,
    /// The last status, and the one before it, which somebody may just have opened: locked, so that
    /// they are known to be of an agent that runs.
    told: [Option<File>; 2],
    /// Held until the process ends.
    _lock: File,
}

impl Store {
    /// Takes over `dir` (made if absent): locks it, removes what an earlier run left unfinished, and reads what is there.
    /// What an earlier run published stays as it is.
    pub fn open(dir: &Path, linger: Duration) -> Result<Self, StoreError> {
        if !dir.is_dir() {
            DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(dir).at("make", dir)?;
        }
        let lock = lock(dir)?;
        // Of an earlier run: --check must not take its word for ours.
        remove(&dir.join(STATUS))?;
        for name in [TENANTS, HOSTS, VERSIONS] {
            let path = dir.join(name);
            if !path.is_dir() {
                make_folder(&path)?;
            }
        }
        let mut store = Self {
            dir: dir.to_owned(),
            disk: Disk::default(),
            verified: BTreeSet::new(),
            retired: BTreeMap::new(),
            latest: BTreeMap::new(),
            linger,
            unfinished: 0,
            told: [None, None],
            _lock: lock,
        };
        for (name, path, _) in entries(&dir.join(VERSIONS))? {
            if name.starts_with(UNFINISHED) {
                remove(&path)?;
            }
        }
        store.rescan()?;
        Ok(store)
    }

    /// What is on disk, as last scanned and changed since.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Reads the folder again, so that what somebody else removed is written again.
    pub fn rescan(&mut self) -> Result<(), StoreError> {
        let links = |folder: &str| -> Result<BTreeMap<String, String>, StoreError> {
            let mut links = BTreeMap::new();
            for (name, path, kind) in entries(&self.dir.join(folder))? {
                if !kind.is_symlink() {
                    return Err(StoreError::Foreign(path));
                }
                let target = fs::read_link(&path).at("read", &path)?;
                links.insert(name, target.to_string_lossy().into_owned());
            }
            Ok(links)
        };
        let (tenants, hosts) = (links(TENANTS)?, links(HOSTS)?);
        let mut versions = BTreeSet::new();
        for (name, path, kind) in entries(&self.dir.join(VERSIONS))? {
            if !kind.is_dir() {
                return Err(StoreError::Foreign(path));
            }
            versions.insert(Version::from_folder(name));
        }
        self.verified.retain(|version| versions.contains(version));
        self.retired.retain(|version, _| versions.contains(version));
        self.disk = Disk { tenants, hosts, versions };
        Ok(())
    }

    /// Writes a version, without leading anybody to it yet. Returns whether anything had to be written.
    pub fn put(&mut self, version: &Version, files: &BTreeMap<String, Vec<u8>>) -> Result<bool, StoreError> {
        self.retired.remove(version);
        if self.verified.contains(version) {
            return Ok(false);
        }
        let path = self.version_path(version);
        let exists = self.disk.versions.contains(version);
        // An earlier run may have lost power, or somebody may have edited: the name alone proves nothing.
        if exists && holds(&path, files) {
            self.verified.insert(version.clone());
            return Ok(false);
        }
        let fresh = match self.write(files) {
            // Waiting readers of old sets matter less than a tenant's newest credentials.
            Err(StoreError::Io { source, .. })
                if source.kind() == io::ErrorKind::StorageFull && self.drop_retired() =>
            {
                self.write(files)?
            }
            other => other?,
        };
        if exists {
            // Readers of a damaged set are better off with none for a moment.
            self.discard(version).inspect_err(|_| self.tidy(&fresh))?;
        }
        fs::rename(&fresh, &path).at("complete", &path).inspect_err(|_| self.tidy(&fresh))?;
        self.latest.extend(files.keys().map(|key| (key.clone(), path.join(key))));
        self.disk.versions.insert(version.clone());
        self.verified.insert(version.clone());
        Ok(true)
    }

    /// Carries out one step of a plan.
    pub fn apply(&mut self, operation: &Operation, now: Instant) -> Result<(), StoreError> {
        match operation {
            Operation::LinkTenant { tenant, version } => {
                let target = tenant_target(version);
                self.link(TENANTS, tenant, &target)?;
                self.disk.tenants.insert(tenant.clone(), target);
            }
            Operation::LinkHost { host, tenant } => {
                let target = host_target(tenant);
                self.link(HOSTS, host, &target)?;
                self.disk.hosts.insert(host.clone(), target);
            }
            Operation::UnlinkHost { host } => {
                remove(&self.dir.join(HOSTS).join(host))?;
                self.disk.hosts.remove(host);
            }
            Operation::UnlinkTenant { tenant } => {
                remove(&self.dir.join(TENANTS).join(tenant))?;
                self.disk.tenants.remove(tenant);
            }
            Operation::Retire { version } => {
                self.retired.entry(version.clone()).or_insert(now + self.linger);
            }
        }
        Ok(())
    }

    /// Removes the retired versions that have lingered long enough. Returns when the next one is due.
    pub fn sweep(&mut self, now: Instant) -> Result<Option<Instant>, StoreError> {
        let due: Vec<Version> = self.retired.iter().filter(|(_, at)| **at <= now).map(|(v, _)| v.clone()).collect();
        for version in due {
            self.discard(&version)?;
        }
        Ok(self.next_sweep())
    }

    /// When the next retired version is due.
    pub fn next_sweep(&self) -> Option<Instant> {
        self.retired.values().min().copied()
    }

    /// Publishes `content` as the status file, in one step.
    pub fn publish_status(&mut self, content: &[u8]) -> Result<(), StoreError> {
        let (fresh, path) = (self.unfinished_path(), self.dir.join(STATUS));
        let file = write_file(&fresh, content)
            .and_then(|file| file.try_lock().map_err(io::Error::from).at("lock", &fresh).map(|()| file))
            .and_then(|file| fs::rename(&fresh, &path).at("replace", &path).map(|()| file))
            .inspect_err(|_| self.tidy(&fresh))?;
        self.told.swap(0, 1);
        self.told[0] = Some(file);
        Ok(())
    }

    fn link(&mut self, folder: &str, name: &str, target: &str) -> Result<(), StoreError> {
        let (fresh, path) = (self.unfinished_path(), self.dir.join(folder).join(name));
        symlink(target, &fresh)
            .at("link", &fresh)
            .and_then(|()| fs::rename(&fresh, &path).at("replace", &path))
            .inspect_err(|_| self.tidy(&fresh))
    }

    /// Writes a folder under a temporary name; leaves nothing behind where that fails.
    fn write(&mut self, files: &BTreeMap<String, Vec<u8>>) -> Result<PathBuf, StoreError> {
        let folder = self.unfinished_path();
        make_folder(&folder)
            .and_then(|()| files.iter().try_for_each(|(key, content)| self.write_or_share(&folder, key, content)))
            .inspect_err(|_| self.tidy(&folder))?;
        Ok(folder)
    }

    fn write_or_share(&self, folder: &Path, key: &str, content: &[u8]) -> Result<(), StoreError> {
        let path = folder.join(key);
        let same = |other: &&PathBuf| fs::read(other).is_ok_and(|read| read == content);
        match self.latest.get(key).filter(same).map(|other| fs::hard_link(other, &path)) {
            Some(Ok(())) => Ok(()),
            // Not every file system has hard links, or any number of them.
            Some(Err(_)) | None => write_file(&path, content).map(drop),
        }
    }

    fn drop_retired(&mut self) -> bool {
        let retired: Vec<Version> = self.retired.keys().cloned().collect();
        retired.into_iter().filter(|version| self.discard(version).is_ok()).count() > 0
    }

    fn discard(&mut self, version: &Version) -> Result<(), StoreError> {
        // Renamed first: a half-removed folder must not pass for a complete one after a crash.
        let path = self.version_path(version);
        let doomed = self.unfinished_path();
        match fs::rename(&path, &doomed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed.at("move away", &path)?,
        }
        self.retired.remove(version);
        self.verified.remove(version);
        self.disk.versions.remove(version);
        remove(&doomed)
    }

    /// Removes what could not be finished. What this leaves, the next start removes.
    fn tidy(&self, path: &Path) {
        if let Err(error) = remove(path) {
            tracing::warn!(%error, "an unfinished file stays until the next start");
        }
    }

    fn version_path(&self, version: &Version) -> PathBuf {
        self.dir.join(VERSIONS).join(version.as_str())
    }

    fn unfinished_path(&mut self) -> PathBuf {
        self.unfinished += 1;
        self.dir.join(VERSIONS).join(format!("{UNFINISHED}{}", self.unfinished))
    }
}

/// Locks `dir` for the life of the returned file.
fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o640)
        .open(&path)
        .at("open", &path)?;
    // A running --check holds a shared lock for microseconds; another agent holds its lock for long.
    const ATTEMPTS: u32 = 20;
    for attempt in 1.. {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if attempt < ATTEMPTS => std::thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::WouldBlock) => return Err(StoreError::Taken(dir.to_owned())),
            Err(TryLockError::Error(source)) => return Err(source).at("lock", &path),
        }
    }
    Ok(file)
}

fn make_folder(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new().mode(FOLDER_MODE).create(path).at("make", path)?;
    // Past the umask, and without losing the group that the folder inherited.
    let inherited = fs::metadata(path).at("read", path)?.permissions().mode() & SET_GROUP_ID;
    fs::set_permissions(path, Permissions::from_mode(FOLDER_MODE | inherited)).at("set the mode of", path)
}

fn write_file(path: &Path, content: &[u8]) -> Result<File, StoreError> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path).at("make", path)?;
    file.write_all(content).at("write", path)?;
    file.set_permissions(Permissions::from_mode(FILE_MODE)).at("set the mode of", path)?;
    Ok(file)
}

/// Whether the folder holds exactly these files.
fn holds(folder: &Path, files: &BTreeMap<String, Vec<u8>>) -> bool {
    let Ok(found) = entries(folder) else {
        return false;
    };
    found.len() == files.len()
        && found.iter().all(|(name, path, kind)| {
            kind.is_file() && files.get(name).is_some_and(|content| fs::read(path).is_ok_and(|read| read == *content))
        })
}

fn entries(folder: &Path) -> Result<Vec<(String, PathBuf, fs::FileType)>, StoreError> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).at("read", folder)? {
        let entry = entry.at("read", folder)?;
        let path = entry.path();
        let kind = entry.file_type().at("read", &path)?;
        let name = entry.file_name().into_string().map_err(|_| StoreError::Foreign(path.clone()))?;
        entries.push((name, path, kind));
    }
    Ok(entries)
}

/// Removes a file, link or folder; absent is fine.
fn remove(path: &Path) -> Result<(), StoreError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.at("remove", path),
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
