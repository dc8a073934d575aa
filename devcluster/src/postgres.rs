//! A PostgreSQL server of its own: TLS by a fresh authority, passwords by SCRAM, an
//! admin that is no superuser, and switches for fault tests.

mod programs;
mod upgrade;

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use self::programs::{Account, PostgresPrograms};
use crate::pki::{self, Authority};
use crate::process::{self, Process, Spec};
use crate::workdir::Workdir;
use crate::{Error, ports, text};

/// How a server is started. The default is a temporary one on a free port.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// The folder for data, certificates and log; `None`: a temporary one, removed on
    /// drop. Where the server's account can't reach it (PostgreSQL refuses to run as
    /// root, and a folder below `/root` is root's own), the data goes to a temporary
    /// folder below `/var/tmp` and the rest stays here.
    pub dir: Option<PathBuf>,
    /// A port to listen on instead of any free one.
    pub port: Option<u16>,
    /// Further lines of `postgresql.conf`; they come last and win.
    pub settings: Vec<(String, String)>,
    /// Whether connections without TLS are refused. They are allowed by default (always
    /// with a password), for tests of clients that ask for no TLS.
    pub require_tls: bool,
}

/// The role that an operator gets: `LOGIN CREATEDB CREATEROLE NOSUPERUSER`, as managed
/// services give it.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Its name.
    pub user: String,
    /// Its password.
    pub password: String,
    /// How `psql` and other clients of libpq take it: database `postgres`,
    /// `sslmode=verify-full` with the authority's certificate.
    pub url: String,
}

/// A running server. Dropping it ends the server and removes its data.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    programs: PostgresPrograms,
    data: PathBuf,
    port: u16,
    ca_pem: String,
    ca_path: PathBuf,
    superuser_password: String,
    admin_password: String,
    // After the process: folders go when it is gone.
    _data_dir: Option<Workdir>,
    _dir: Option<Workdir>,
}

const ADMIN: &str = "tenantry_admin";
const SUPERUSER: &str = "postgres";
const READY_WITHIN: Duration = Duration::from_secs(60);

impl Postgres {
    /// Starts a server and waits until it takes connections (about a second). Blocks;
    /// may be called with or without an async runtime around.
    #[expect(clippy::needless_pass_by_value, reason = "options are made for one call")]
    pub fn start(options: PostgresOptions) -> Result<Postgres, Error> {
        let dir = match &options.dir {
            Some(dir) => Workdir::claim(dir)?,
            None => Workdir::temporary(&std::env::temp_dir())?,
        };
        let authority = Authority::new("devcluster PostgreSQL authority")?;
        let log = dir.path().join("postgres.log");
        let mut server = Postgres::start_in(dir.path(), &log, &authority, &options)?;
        server._dir = Some(dir);
        Ok(server)
    }

    /// Starts a server below `dir`, a folder that the caller holds.
    pub(crate) fn start_in(
        dir: &Path,
        log: &Path,
        authority: &Authority,
        options: &PostgresOptions,
    ) -> Result<Postgres, Error> {
        let programs = PostgresPrograms::find_or_install()?;
        let account = Account::for_server()?;
        let (home, data_dir) = account.home(dir)?;
        let ca_path = dir.join("postgres-ca.crt");
        let ca_pem = authority.certificate_pem();
        fs::write(&ca_path, &ca_pem).map_err(Error::file("write", &ca_path))?;

        let certificate = authority.server("localhost", &["localhost", "127.0.0.1"])?;
        for (name, content) in [("server.crt", &certificate.certificate_pem), ("server.key", &certificate.key_pem)] {
            let path = home.join(name);
            pki::write_private(&path, content)?;
            account.own(&path)?;
        }
        let data = home.join("data");
        let superuser_password = text::secret();
        let admin_password = text::secret();
        initialise(&programs, &account, &data, &[(SUPERUSER, &superuser_password), (ADMIN, &admin_password)])?;
        configure(&home, &data, options)?;
        let (process, port) = start_process(&programs, &account, &data, log, options.port)?;
        Ok(Postgres {
            process,
            programs,
            data,
            port,
            ca_pem,
            ca_path,
            superuser_password,
            admin_password,
            _data_dir: data_dir,
            _dir: None,
        })
    }

    /// The name to connect to; the server's certificate is for it and for `127.0.0.1`.
    pub fn host(&self) -> &str {
        "localhost"
    }

    /// The port, the same after each restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The authority that signed the server's certificate, as PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The same in a file.
    pub fn ca_path(&self) -> &Path {
        &self.ca_path
    }

    /// The password of the superuser `postgres`.
    pub fn superuser_password(&self) -> &str {
        &self.superuser_password
    }

    /// How `psql` takes the superuser's connection to database `postgres`.
    pub fn superuser_url(&self) -> String {
        self.url(SUPERUSER, &self.superuser_password, "postgres")
    }

    /// The operator's admin, which is no superuser.
    pub fn admin(&self) -> Admin {
        Admin {
            user: ADMIN.to_owned(),
            password: self.admin_password.clone(),
            url: self.url(ADMIN, &self.admin_password, "postgres"),
        }
    }

    /// How `psql` takes a connection of any user, with TLS verified in full.
    pub fn url(&self, user: &str, password: &str, database: &str) -> String {
        let ca = self.ca_path.to_string_lossy();
        format!(
            "postgresql://{}:{}@{}:{}/{}?sslmode=verify-full&sslrootcert={}",
            text::percent_encoded(user),
            text::percent_encoded(password),
            self.host(),
            self.port,
            text::percent_encoded(database),
            text::percent_encoded(&ca),
        )
    }

    /// The server's log.
    pub fn log_path(&self) -> &Path {
        self.process.log_path()
    }

    /// The process id of the postmaster, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// Shuts the server down in order: sessions end, data is kept.
    pub fn stop(&self) {
        self.thaw();
        self.process.stop_within(Duration::from_secs(30));
    }

    /// Ends all of the server's processes by SIGKILL, as a crash of the machine would;
    /// returns when they are gone.
    pub fn kill(&self) {
        // The postmaster stands still first, so no new children appear.
        self.process.freeze();
        let children: Vec<_> = self.children().into_iter().filter_map(process::open).collect();
        for child in &children {
            process::signal(child, Signal::KILL);
        }
        self.process.kill();
        for child in &children {
            process::exited(child, None);
        }
    }

    /// Starts a stopped or killed server again, on the same port and data, and waits
    /// until it takes connections.
    pub fn start_again(&self) -> Result<(), Error> {
        self.process.start_again()?;
        await_ready(&self.process, &self.data)
    }

    /// Stops the clock of all of the server's processes (SIGSTOP): connections stay
    /// open and nothing answers, as behind a dead network.
    pub fn freeze(&self) {
        self.process.freeze();
        self.signal_children(Signal::STOP);
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) {
        self.signal_children(Signal::CONT);
        self.process.thaw();
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    fn children(&self) -> Vec<u32> {
        self.pid().map(process::children_of).unwrap_or_default()
    }

    fn signal_children(&self, which: Signal) {
        for child in self.children().into_iter().filter_map(process::open) {
            process::signal(&child, which);
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.thaw();
        // Immediate shutdown: the data goes anyway, the shared memory is released.
        self.process.signal(Signal::QUIT);
        if self.process.wait(Duration::from_secs(2)).is_none() {
            self.kill();
        }
    }
}

/// Makes the data folder, with a password for each of these roles; one that initdb
/// doesn't make becomes an admin.
fn initialise(
    programs: &PostgresPrograms,
    account: &Account,
    data: &Path,
    roles: &[(&str, &str)],
) -> Result<(), Error> {
    initdb(programs, account, data)?;
    let mut sql = String::new();
    for (role, password) in roles {
        let verb = match *role {
            SUPERUSER => "ALTER ROLE",
            _ => "CREATE ROLE",
        };
        let attributes = match *role {
            SUPERUSER => "",
            _ => "LOGIN CREATEDB CREATEROLE NOSUPERUSER",
        };
        let verifier = postgres_protocol::password::scram_sha_256(password.as_bytes());
        // Single-user mode takes one statement a line. Writing to a String can't fail.
        let _ = writeln!(sql, "{verb} {role} {attributes} PASSWORD '{verifier}'");
    }
    let postgres = programs.program("postgres");
    let single: [&OsStr; 4] = ["--single".as_ref(), "-D".as_ref(), data.as_os_str(), "postgres".as_ref()];
    let output = account.run(&postgres, &single, &sql)?;
    // It goes on after an error, and ends with success.
    if output.contains("ERROR:") {
        return Err(Error::Command {
            command: format!("{} --single", postgres.display()),
            status: "an error in SQL".into(),
            output: process::last_lines(&output, 12),
        });
    }
    Ok(())
}

/// Makes a data folder with one role, the superuser.
fn initdb(programs: &PostgresPrograms, account: &Account, data: &Path) -> Result<(), Error> {
    let program = programs.program("initdb");
    let mut arguments: Vec<&OsStr> = vec!["--pgdata".as_ref(), data.as_os_str()];
    let others = ["--no-sync", "--username", SUPERUSER, "--encoding", "UTF8", "--locale", "C.UTF-8"];
    arguments.extend(others.map(OsStr::new));
    // Replaced before the server ever listens; initdb would want a password here.
    arguments.extend(["--auth", "trust"].map(OsStr::new));
    // The default changed in 18, and pg_upgrade wants it alike.
    let without_checksums = "--no-data-checksums";
    if account.run(&program, &["--help".as_ref()], "")?.contains(without_checksums) {
        arguments.push(without_checksums.as_ref());
    }
    account.run(&program, &arguments, "").map(drop)
}

fn configure(home: &Path, data: &Path, options: &PostgresOptions) -> Result<(), Error> {
    let certificate = home.join("server.crt");
    let key = home.join("server.key");
    let ours = [
        ("listen_addresses", "127.0.0.1"),
        // Clients come by TCP; a socket's path may be longer than the system allows.
        ("unix_socket_directories", ""),
        ("max_connections", "100"),
        ("password_encryption", "scram-sha-256"),
        ("ssl", "on"),
        ("ssl_cert_file", &certificate.to_string_lossy()),
        ("ssl_key_file", &key.to_string_lossy()),
        // The data doesn't outlive the machine.
        ("fsync", "off"),
        // A killed server leaves nothing in /dev/shm.
        ("dynamic_shared_memory_type", "mmap"),
        ("log_line_prefix", "%m [%p] %q%u@%d "),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut text = String::new();
    for (name, value) in ours.iter().chain(&options.settings) {
        // Writing to a String can't fail.
        let _ = writeln!(text, "{name} = {}", text::conf_value(value));
    }
    let path = data.join("postgresql.conf");
    fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(Error::file("write", &path))?;

    let plain = if options.require_tls { "" } else { "hostnossl all all 127.0.0.1/32 scram-sha-256\n" };
    let rules = format!("hostssl all all 127.0.0.1/32 scram-sha-256\n{plain}");
    let path = data.join("pg_hba.conf");
    fs::write(&path, rules).map_err(Error::file("write", &path))
}

fn start_process(
    programs: &PostgresPrograms,
    account: &Account,
    data: &Path,
    log: &Path,
    wanted: Option<u16>,
) -> Result<(Process, u16), Error> {
    let port = ports::choose("PostgreSQL", wanted)?;
    let number = port.number();
    let mut spec = Spec::new("postgres", programs.program("postgres"), log.to_owned());
    spec = spec.args([OsString::from("-D"), data.into(), "-p".into(), number.to_string().into()]);
    spec.user = account.name().map(ToOwned::to_owned);
    // Fast shutdown: sessions are ended.
    spec.stop_signal = Signal::INT;
    spec.port = Some(port);
    let process = Process::start(spec)?;
    await_ready(&process, data)?;
    Ok((process, number))
}

/// Waits for the postmaster to say that it is ready, as pg_ctl does.
fn await_ready(process: &Process, data: &Path) -> Result<(), Error> {
    let pid_file = data.join("postmaster.pid");
    process.await_ready(READY_WITHIN, || {
        let text = fs::read_to_string(&pid_file).unwrap_or_default();
        let mut lines = text.lines();
        let pid = lines.next().and_then(|pid| pid.trim().parse::<u32>().ok());
        let status = lines.nth(6).map(str::trim);
        if pid.is_some() && pid == process.pid() && status == Some("ready") {
            Ok(())
        } else {
            Err(format!("its status is `{}`", status.unwrap_or("starting")))
        }
    })
}
