//! From a host to its tenant's database, by the files that `tenantry agent` keeps (or that the kubelet mounts).
//!
//! ```text
//! DIR/hosts/HOST/uri       user, password, server and database
//! DIR/hosts/HOST/ca.crt    who signs the server's certificate
//! ```

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::database::{Authorities, Database, Files};
use crate::error::Error;
use crate::host::TenantHost;
use crate::pool::{Connection, Limits, Pool, PoolError};

/// All tenants whose files are there.
pub struct Tenants {
    hosts: PathBuf,
    pool: Pool,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// What was read for a host, good as long as its files are the same.
    hosts: HashMap<TenantHost, (Stamp, Arc<Database>)>,
    /// The same for all hosts of a tenant, as their files say the same.
    databases: HashMap<Files, Weak<Database>>,
    authorities: Authorities,
}

impl Known {
    /// Gives a host its database. One that no host has any more is retired thereby.
    fn assign(&mut self, host: &TenantHost, stamp: Stamp, database: &Arc<Database>) {
        database.assigned();
        if let Some((_, before)) = self.hosts.insert(host.clone(), (stamp, Arc::clone(database))) {
            before.unassigned();
        }
    }

    fn forget(&mut self, host: &TenantHost) {
        if let Some((_, database)) = self.hosts.remove(host) {
            database.unassigned();
        }
    }
}

/// Tells whether a host's files are still those that were read.
#[derive(Clone, PartialEq, Eq)]
struct Stamp {
    uri: FileStamp,
    authority: Option<FileStamp>,
}

/// A change is always a new file: another inode, or the same number at another time.
#[derive(Clone, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    size: u64,
}

impl Stamp {
    fn of(folder: &Path) -> io::Result<Self> {
        let authority = match FileStamp::of(&folder.join("ca.crt")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            stamp => Some(stamp?),
        };
        Ok(Self { uri: FileStamp::of(&folder.join("uri"))?, authority })
    }
}

impl FileStamp {
    fn of(file: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(file)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size: metadata.size(),
        })
    }
}

impl Tenants {
    /// The tenants below `dir`. Nothing is read before a request asks.
    pub fn new(dir: &Path, limits: Limits) -> Self {
        Self { hosts: dir.join("hosts"), pool: Pool::new(limits), known: Mutex::default() }
    }

    /// Closes idle connections as they come of age, and forgets tenants whose files are gone. Runs until it is dropped.
    pub async fn tidy(&self) {
        let mut ticks = tokio::time::interval(self.pool.limits().idle_for);
        let forget = async {
            loop {
                ticks.tick().await;
                self.forget_gone();
            }
        };
        tokio::join!(self.pool.close_idle(), forget);
    }

    /// Closes idle connections; those in use are closed when they come back.
    pub fn close(&self) {
        self.pool.close();
    }

    /// A connection of the tenant that has this host.
    pub(crate) async fn connection(&self, host: &TenantHost) -> Result<Connection, Error> {
        let database = self.database(host)?;
        let refused = match self.pool.connection(&database).await {
            Err(PoolError::Refused(error)) => error,
            other => return other.map_err(|error| Error::Unavailable(error.to_string())),
        };
        // The login was replaced between our look at the file and now; a new file, if there is one, says the new login.
        let renewed = self.database(host)?;
        if Arc::ptr_eq(&database, &renewed) {
            return Err(Error::Unavailable(format!(
                "the database refuses the login in the files of {}: {refused}",
                host.as_str()
            )));
        }
        self.pool.connection(&renewed).await.map_err(|error| Error::Unavailable(error.to_string()))
    }

    /// The host's database, read anew if its file is another than before.
    ///
    /// The files are in memory, and small: reading them here blocks for microseconds.
    fn database(&self, host: &TenantHost) -> Result<Arc<Database>, Error> {
        let stamp = match Stamp::of(&self.hosts.join(host.as_str())) {
            Ok(stamp) => stamp,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.known().forget(host);
                self.pool.close_retired();
                return Err(Error::UnknownHost(host.as_str().to_owned()));
            }
            Err(error) => {
                return Err(Error::Unavailable(format!("cannot look at the files of {}: {error}", host.as_str())));
            }
        };
        if let Some((read, database)) = self.known().hosts.get(host)
            && *read == stamp
        {
            return Ok(Arc::clone(database));
        }
        let files = self.read(host)?;
        let mut known = self.known();
        let database = match known.databases.get(&files).and_then(Weak::upgrade) {
            Some(database) => database,
            None => {
                let database = Database::new(&files, &mut known.authorities, self.pool.limits().open_per_tenant)
                    .map_err(|error| {
                        Error::Unavailable(format!("the files of {} are of no use: {error}", host.as_str()))
                    })?;
                let database = Arc::new(database);
                known.databases.retain(|_, database| database.strong_count() > 0);
                known.databases.insert(files, Arc::downgrade(&database));
                database
            }
        };
        known.assign(host, stamp, &database);
        drop(known);
        self.pool.close_retired();
        Ok(database)
    }

    /// Reads a host's files. The folder is resolved once, so that both are of one version.
    fn read(&self, host: &TenantHost) -> Result<Files, Error> {
        let read = || {
            let folder = fs::canonicalize(self.hosts.join(host.as_str()))?;
            let authority = match fs::read(folder.join("ca.crt")) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                read => read?,
            };
            Ok(Files { uri: fs::read_to_string(folder.join("uri"))?, authority })
        };
        read().map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Error::UnknownHost(host.as_str().to_owned()),
            _ => Error::Unavailable(format!("cannot read the files of {}: {error}", host.as_str())),
        })
    }

    fn forget_gone(&self) {
        let mut known = self.known();
        let hosts: Vec<TenantHost> = known.hosts.keys().cloned().collect();
        for host in hosts {
            let look = Stamp::of(&self.hosts.join(host.as_str()));
            if look.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                known.forget(&host);
            }
        }
        drop(known);
        self.pool.close_retired();
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // What is known can be read again at any time; a panic elsewhere makes none of it wrong.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
