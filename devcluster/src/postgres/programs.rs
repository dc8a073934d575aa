//! PostgreSQL's programs, and the account that they run as.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::process::{self, guarded};
use crate::progress::Progress;
use crate::workdir::Workdir;
use crate::{Error, text};

/// Where Debian keeps a main folder per version.
const DEBIAN: &str = "/usr/lib/postgresql";
/// What a folder of programs must hold.
const NEEDED: [&str; 2] = ["initdb", "postgres"];

/// The folder of one PostgreSQL version's programs.
#[derive(Clone, Debug)]
pub(super) struct PostgresPrograms {
    bin: PathBuf,
}

impl PostgresPrograms {
    /// `PG_BIN`, else Debian's newest version, else what `PATH` has, else Debian's
    /// package is installed where that is possible without asking.
    pub(super) fn find_or_install() -> Result<PostgresPrograms, Error> {
        if let Some(bin) = text::path_variable("PG_BIN") {
            return Self::in_folder(&bin).ok_or_else(|| Error::Missing {
                what: format!("PG_BIN is {}, which has no initdb and postgres", bin.display()),
                hint: "set it to the folder of PostgreSQL's server programs (such as /usr/lib/postgresql/15/bin), or unset it".into(),
            });
        }
        // One at a time: apt-get holds a lock of its own and fails for the second.
        static INSTALLING: Mutex<()> = Mutex::new(());
        let _one = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = Self::find() {
            return Ok(found);
        }
        install()?;
        Self::find().ok_or_else(|| Error::Missing {
            what: "the package postgresql was installed, but has no server programs".into(),
            hint: format!("install a PostgreSQL server 15 or newer below {DEBIAN}, or set PG_BIN"),
        })
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    fn find() -> Option<PostgresPrograms> {
        let debian = fs::read_dir(DEBIAN).ok().and_then(|versions| {
            versions
                .filter_map(|entry| {
                    let entry = entry.ok()?;
                    let version: u32 = entry.file_name().to_str()?.parse().ok()?;
                    Some((version, Self::in_folder(&entry.path().join("bin"))?))
                })
                .max_by_key(|(version, _)| *version)
                .map(|(_, programs)| programs)
        });
        debian.or_else(|| {
            let path = std::env::var_os("PATH")?;
            std::env::split_paths(&path).find_map(|folder| Self::in_folder(&folder))
        })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.bin
    }

    pub(super) fn in_folder(bin: &Path) -> Option<PostgresPrograms> {
        NEEDED.iter().all(|program| bin.join(program).is_file()).then(|| PostgresPrograms { bin: bin.to_owned() })
    }
}

/// Installs Debian's package, without the cluster that it would make and start.
fn install() -> Result<(), Error> {
    let possible = rustix::process::geteuid().is_root()
        && Command::new("apt-get").arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    if !possible {
        return Err(Error::Missing {
            what: "no PostgreSQL server was found on this machine".into(),
            hint: "install one (Debian: apt-get install postgresql), or set PG_BIN to the folder of its programs"
                .into(),
        });
    }
    // Shown always: it changes the machine, and takes a while.
    Progress::Shown.say("installing PostgreSQL (apt-get install postgresql)");
    let folder = Path::new("/etc/postgresql-common/createcluster.d");
    let setting = folder.join("devcluster.conf");
    fs::create_dir_all(folder).map_err(Error::file("make", folder))?;
    fs::write(&setting, "create_main_cluster = false\n").map_err(Error::file("write", &setting))?;
    let installed = apt(&["install", "--yes", "--no-install-recommends", "postgresql"])
        // The lists of a fresh machine are empty or old.
        .or_else(|_| {
            apt(&["update"])?;
            apt(&["install", "--yes", "--no-install-recommends", "postgresql"])
        });
    // Versions that the user installs later get their cluster, as Debian does it.
    fs::remove_file(&setting).map_err(Error::file("remove", &setting))?;
    installed
}

fn apt(args: &[&str]) -> Result<(), Error> {
    let mut command = Command::new("apt-get");
    command.args(args).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    output_of(&mut command, &format!("apt-get {}", args.join(" "))).map(drop)
}

/// Who the server runs as: this process's user, or Debian's `postgres` where that is root.
#[derive(Clone, Debug)]
pub(super) struct Account {
    other: Option<OtherUser>,
}

#[derive(Clone, Debug)]
struct OtherUser {
    name: String,
    uid: u32,
    gid: u32,
}

impl Account {
    pub(super) fn for_server() -> Result<Account, Error> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Account { other: None });
        }
        let name = "postgres";
        let id = |which: &str| -> Option<u32> {
            let output = Command::new("id").args([which, name]).output().ok()?;
            String::from_utf8_lossy(&output.stdout).trim().parse().ok()
        };
        let (Some(uid), Some(gid)) = (id("-u"), id("-g")) else {
            return Err(Error::Missing {
                what: "PostgreSQL refuses to run as root, and there is no user `postgres`".into(),
                hint: "make one (useradd --system --user-group postgres), or run as an ordinary user".into(),
            });
        };
        Ok(Account { other: Some(OtherUser { name: name.to_owned(), uid, gid }) })
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.other.as_ref().map(|other| other.name.as_str())
    }

    /// Gives a file or folder to the account.
    pub(super) fn own(&self, path: &Path) -> Result<(), Error> {
        match &self.other {
            None => Ok(()),
            Some(other) => {
                chown(path, Some(other.uid), Some(other.gid)).map_err(Error::file("change the owner of", path))
            }
        }
    }

    /// A folder of the account's own: `dir/postgres`, or in a temporary one where the
    /// account has no way into `dir`.
    pub(super) fn home(&self, dir: &Path) -> Result<(PathBuf, Option<Workdir>), Error> {
        let elsewhere = if self.can_enter(dir) { None } else { Some(Workdir::temporary(Path::new("/var/tmp"))?) };
        let parent = elsewhere.as_ref().map_or(dir, Workdir::path);
        let home = parent.join("postgres");
        fs::create_dir(&home).map_err(Error::file("make", &home))?;
        self.own(&home)?;
        Ok((home, elsewhere))
    }

    fn can_enter(&self, dir: &Path) -> bool {
        self.other.is_none()
            || guarded(Path::new("test"), self.name())
                .arg("-x")
                .arg(dir)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
    }

    /// Runs one of PostgreSQL's programs to its end, with `input` on standard input.
    pub(super) fn run(&self, program: &Path, args: &[&OsStr], input: &str) -> Result<String, Error> {
        // The account may not enter the current folder.
        self.run_in(Path::new("/"), program, args, input)
    }

    /// The same, with `folder` as the current one.
    pub(super) fn run_in(&self, folder: &Path, program: &Path, args: &[&OsStr], input: &str) -> Result<String, Error> {
        let name = program.display().to_string();
        let mut file = tempfile::tempfile().map_err(Error::file("make a file in", &std::env::temp_dir()))?;
        let rewound = file.write_all(input.as_bytes()).and_then(|()| std::io::Seek::rewind(&mut file));
        rewound.map_err(Error::file("write a file in", &std::env::temp_dir()))?;
        let mut command = guarded(program, self.name());
        command.args(args).current_dir(folder).stdin(file);
        output_of(&mut command, &name)
    }
}

fn output_of(command: &mut Command, name: &str) -> Result<String, Error> {
    let output = command.output().map_err(|source| Error::File { action: "start", path: name.into(), source })?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        Ok(text)
    } else {
        Err(Error::Command {
            command: name.to_owned(),
            status: process::describe(output.status),
            output: process::last_lines(&text, 12),
        })
    }
}
