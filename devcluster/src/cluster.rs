//! The whole ground: control plane, PostgreSQL, and the folder that they live in.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::PostParams;

use crate::audit::AuditLog;
use crate::pki::{Authority, write_private};
use crate::plane::{API_SERVER, ControlPlane, boot};
use crate::process::{Process, Spec};
use crate::progress::Progress;
use crate::workdir::Workdir;
use crate::{Error, Postgres, PostgresOptions, Programs, disk, install, kubeconfig, text, workdir};

/// What is started, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder for everything; `None`: a temporary one, removed on drop.
    pub dir: Option<PathBuf>,
    /// How many nodes kwok plays, each with room for 500 pods.
    pub nodes: u32,
    /// Whether each API call is written to `audit.log` (level Metadata).
    pub audit: bool,
    /// Only etcd and kube-apiserver: no controllers, no scheduler, no nodes.
    pub api_only: bool,
    /// Whether a PostgreSQL is started too.
    pub postgres: bool,
    /// Whether the Gateway API's custom resource definitions are installed.
    pub gateway_api: bool,
    /// A port for the API server instead of any free one.
    pub api_port: Option<u16>,
    /// A port for PostgreSQL instead of any free one.
    pub postgres_port: Option<u16>,
    /// Further lines of `postgresql.conf`.
    pub postgres_settings: Vec<(String, String)>,
    /// Whether steps are shown on standard error. A first build is shown always.
    pub progress: Progress,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            dir: None,
            nodes: 2,
            audit: false,
            api_only: false,
            postgres: true,
            gateway_api: true,
            api_port: None,
            postgres_port: None,
            postgres_settings: Vec::new(),
            progress: Progress::Quiet,
        }
    }
}

/// A running ground. Dropping it ends all programs and removes what they stored; a
/// folder that the user named keeps its logs.
#[derive(Debug)]
pub struct Devcluster {
    // In the order of dropping: programs before their folders.
    plane: Option<ControlPlane>,
    postgres: Option<Postgres>,
    programs: Programs,
    kubeconfig: PathBuf,
    env: Vec<(String, String)>,
    dir: Workdir,
}

/// Room for data and logs, in bytes.
const ROOM: u64 = 512 * 1024 * 1024;
/// How long a ServiceAccount's token is good for, in seconds.
const TOKEN_LIFE: i64 = 24 * 3600;

impl Devcluster {
    /// Starts everything and waits until it is ready: a few seconds, or some minutes
    /// the first time, while the programs are built. Blocks; may be called with or
    /// without an async runtime around.
    ///
    /// With `DEVCLUSTER_KUBECONFIG` set, that cluster is used and only PostgreSQL is
    /// started.
    #[expect(clippy::needless_pass_by_value, reason = "options are made for one call")]
    pub fn start(options: Options) -> Result<Devcluster, Error> {
        let existing = text::path_variable("DEVCLUSTER_KUBECONFIG");
        let progress = options.progress;
        let dir = match &options.dir {
            Some(dir) => Workdir::claim(dir)?,
            None => Workdir::temporary(&std::env::temp_dir())?,
        };
        if dir.was_stale {
            progress.say(&format!(
                "removed what an earlier devcluster, which was killed, left in {}",
                dir.path().display()
            ));
        }
        disk::require(dir.path(), ROOM, "run a cluster")?;
        let log = dir.path().join("log");
        fs::create_dir_all(&log).map_err(Error::file("make", &log))?;
        let programs = match existing {
            Some(_) => Programs::for_existing_cluster(progress)?,
            None => install(progress)?,
        };
        let authority = Authority::new("devcluster authority")?;
        let phase = progress.phase("starting the cluster");
        let (plane, postgres) = std::thread::scope(|scope| {
            let postgres = options.postgres.then(|| {
                scope.spawn(|| {
                    let options = PostgresOptions {
                        port: options.postgres_port,
                        settings: options.postgres_settings.clone(),
                        ..PostgresOptions::default()
                    };
                    Postgres::start_in(dir.path(), &log.join("postgres.log"), &authority, &options)
                })
            });
            let plane = match &existing {
                None => ControlPlane::start(dir.path(), &programs, &options, &authority).map(Some),
                Some(kubeconfig) => use_existing(kubeconfig, &dir, &programs, &options).map(|()| None),
            };
            let postgres =
                postgres.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            (plane, postgres.transpose())
        });
        drop(phase);
        let mut cluster = Devcluster {
            plane: plane?,
            postgres: postgres?,
            kubeconfig: dir.path().join("kubeconfig"),
            programs,
            env: Vec::new(),
            dir,
        };
        cluster.write_env()?;
        Ok(cluster)
    }

    fn write_env(&mut self) -> Result<(), Error> {
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let mut env = vec![
            ("KUBECONFIG".to_owned(), path(&self.kubeconfig)),
            ("KUBECTL".to_owned(), path(&self.bin("kubectl"))),
            ("HELM".to_owned(), path(&self.bin("helm"))),
        ];
        if let Some(postgres) = &self.postgres {
            env.push(("DATABASE_ADMIN_URL".to_owned(), postgres.admin().url));
            env.push(("DATABASE_SUPERUSER_URL".to_owned(), postgres.superuser_url()));
        }
        for (name, value) in env {
            self.set_env(&name, &value)?;
        }
        Ok(())
    }

    /// The folder of this ground.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The variables of the file `env`, for scripts and shells.
    pub fn env(&self) -> &[(String, String)] {
        &self.env
    }

    /// Adds or replaces a variable, here and in the file `env`.
    pub fn set_env(&mut self, name: &str, value: &str) -> Result<(), Error> {
        match self.env.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.env.push((name.to_owned(), value.to_owned())),
        }
        let lines: String =
            self.env.iter().map(|(name, value)| format!("{name}={}\n", text::shell_word(value))).collect();
        // In one step: a script may read it at any time. It holds passwords.
        let path = self.dir().join("env");
        let fresh = self.dir().join(".env-fresh");
        write_private(&fresh, &lines)?;
        fs::rename(&fresh, &path).map_err(Error::file("write", &path))
    }

    /// The path of a program of the cache: `kubectl`, `helm`, `kube-apiserver` and so on.
    pub fn bin(&self, program: &str) -> PathBuf {
        self.programs.path(program)
    }

    /// The folder of the Gateway API's custom resource definitions, for a ground that was
    /// started without them.
    pub fn gateway_api(&self) -> PathBuf {
        self.programs.gateway_api()
    }

    /// `kubectl` as the administrator.
    pub fn kubectl(&self) -> Command {
        self.command("kubectl")
    }

    /// `helm` as the administrator.
    pub fn helm(&self) -> Command {
        self.command("helm")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin(program));
        command.env("KUBECONFIG", &self.kubeconfig);
        command
    }

    /// The PostgreSQL of this ground.
    ///
    /// # Panics
    /// When it was started with `postgres: false`.
    pub fn postgres(&self) -> &Postgres {
        self.postgres.as_ref().expect("this ground was started without PostgreSQL")
    }

    /// A client of the API with all rights.
    pub async fn client(&self) -> Result<kube::Client, Error> {
        kubeconfig::client(&self.kubeconfig).await
    }

    /// A kubeconfig for a ServiceAccount that exists, with a token for a day; it has the
    /// rights that RBAC gives it and no others.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf, Error> {
        let token = self.service_account_token(namespace, name, None).await?;
        let folder = self.dir().join("kubeconfigs");
        fs::create_dir_all(&folder).map_err(Error::file("make", &folder))?;
        let path = folder.join(format!("{namespace}.{name}"));
        let admin = kubeconfig::read(&self.kubeconfig)?;
        let config = kubeconfig::with_token(admin, &self.kubeconfig, &token)?;
        kubeconfig::write(&path, &config)?;
        Ok(path)
    }

    /// A token for a day of a ServiceAccount that exists, for an audience other than the API
    /// server where one is named: as a pod's projected volume has it.
    pub async fn service_account_token(
        &self,
        namespace: &str,
        name: &str,
        audience: Option<&str>,
    ) -> Result<String, Error> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, namespace);
        let spec = TokenRequestSpec {
            audiences: audience.map(|audience| vec![audience.to_owned()]),
            expiration_seconds: Some(TOKEN_LIFE),
            ..TokenRequestSpec::default()
        };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let action = format!("get a token for ServiceAccount {namespace}/{name}");
        let answer = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .map_err(boot::failed(&action))?;
        Ok(answer.status.unwrap_or_default().token.unwrap_or_default())
    }

    /// A client of the API as a ServiceAccount.
    pub async fn service_account_client(&self, namespace: &str, name: &str) -> Result<kube::Client, Error> {
        kubeconfig::client(&self.service_account_kubeconfig(namespace, name).await?).await
    }

    /// The log of API calls; empty unless started with `audit: true`.
    pub fn audit(&self) -> AuditLog {
        AuditLog::new(self.dir().join("audit.log"))
    }

    /// One program, for fault tests: `etcd`, `kube-apiserver`,
    /// `kube-controller-manager`, `kube-scheduler` or `kwok`.
    ///
    /// # Panics
    /// When no such program was started here.
    pub fn program(&self, name: &str) -> &Process {
        self.processes()
            .find(|process| process.name() == name)
            .unwrap_or_else(|| panic!("this ground has no program {name}"))
    }

    /// All programs, PostgreSQL included.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        let plane = self.plane.iter().flat_map(ControlPlane::processes);
        plane.chain(self.postgres.iter().map(Postgres::process))
    }

    /// Waits until the API server answers again, after it or etcd was stopped, frozen or
    /// killed and then brought back.
    pub async fn await_api(&self) -> Result<(), Error> {
        let client = self.client().await?;
        let processes = self.plane.as_ref().map_or(&[][..], ControlPlane::processes);
        let running: Vec<&Process> = processes.iter().filter(|one| one.pid().is_some()).collect();
        boot::unless_dead(&running, API_SERVER, boot::answers(&client, "/readyz")).await
    }

    /// Starts another program that ends with this process at the latest, with its output
    /// in `log/NAME.log`.
    pub fn spawn(
        &self,
        name: &str,
        program: &Path,
        args: impl IntoIterator<Item = impl Into<OsString>>,
        env: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
    ) -> Result<Process, Error> {
        let log = self.dir().join("log").join(format!("{name}.log"));
        Process::start(Spec::new(name, program.to_owned(), log).args(args).env(env))
    }
}

/// Ends the devcluster that runs in `dir`, and waits until it is gone.
pub fn down(dir: &Path) -> Result<(), Error> {
    workdir::end_owner(dir)
}

/// Takes a cluster that runs elsewhere: its kubeconfig in one file, and the Gateway
/// API's definitions where they are missing.
fn use_existing(source: &Path, dir: &Workdir, programs: &Programs, options: &Options) -> Result<(), Error> {
    let unusable = |reason: String| Error::Kubeconfig { path: source.to_owned(), reason };
    if options.audit {
        return Err(unusable(
            "the audit log needs an API server that devcluster starts: unset DEVCLUSTER_KUBECONFIG, or leave --audit out".into(),
        ));
    }
    // kubectl reads what the files that it names hold, and writes it into one.
    let output = Command::new(programs.path("kubectl"))
        .args(["config", "view", "--raw", "--flatten", "--minify"])
        .env("KUBECONFIG", source)
        .output()
        .map_err(Error::file("run", &programs.path("kubectl")))?;
    if !output.status.success() {
        return Err(unusable(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let path = dir.path().join("kubeconfig");
    write_private(&path, &String::from_utf8_lossy(&output.stdout))?;
    boot::blocking(async {
        let client = kubeconfig::client(&path).await?;
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        let name = "httproutes.gateway.networking.k8s.io";
        let known = definitions
            .get_opt(name)
            .await
            .map_err(|error| unusable(format!("its cluster doesn't answer: {error}")))?;
        if options.gateway_api && known.is_none() {
            boot::install_definitions(&client, &programs.gateway_api()).await?;
        }
        Ok(())
    })
}
