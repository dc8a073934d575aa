//! The control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler and
//! kwok, each a process of its own.

pub(crate) mod boot;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::pki::{self, Authority, write_private};
use crate::ports::{self, Port};
use crate::process::{Process, Spec};
use crate::workdir::Workdir;
use crate::{Error, Options, Programs, disk, kubeconfig};

/// The API server.
pub(crate) const API_SERVER: &str = "kube-apiserver";
const ETCD: &str = "etcd";
const CONTROLLER_MANAGER: &str = "kube-controller-manager";
const SCHEDULER: &str = "kube-scheduler";
const KWOK: &str = "kwok";

const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The first address of the service range: the Service `kubernetes`.
const SERVICE_ADDRESS: &str = "10.96.0.1";
/// What the endpoints of the Service `kubernetes` say. It may not be a loopback
/// address, and nobody connects to it: kwok's pods have no network. From the range for
/// documentation, so that it is nobody's.
const ADVERTISED: &str = "192.0.2.1";
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Room that etcd's folder in memory should have, in bytes.
const ETCD_ROOM: u64 = 1024 * 1024 * 1024;
/// These Go programs live for minutes: to collect garbage only at five times what is in use, and not
/// at twice, takes a fifth of their work away, for some 250 MB more of the API server's memory.
const GARBAGE: (&str, &str) = ("GOGC", "400");
/// How long the programs may take to end by themselves.
const GRACE: Duration = Duration::from_secs(2);

/// The running programs. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct ControlPlane {
    /// In the order of starting: each needs those before it.
    processes: Vec<Process>,
    _etcd_dir: Option<Workdir>,
}

/// Everything that the programs are started with, except ports.
struct Setting<'a> {
    dir: &'a Path,
    programs: &'a Programs,
    options: &'a Options,
    authority: &'a Authority,
}

struct Ports {
    etcd: Port,
    api: Port,
    controller_manager: Port,
    scheduler: Port,
}

impl ControlPlane {
    /// Starts all programs that `options` asks for, writes `dir/kubeconfig`, and waits
    /// until the API answers, nodes are Ready and namespaces get their ServiceAccounts.
    pub(crate) fn start(
        dir: &Path,
        programs: &Programs,
        options: &Options,
        authority: &Authority,
    ) -> Result<ControlPlane, Error> {
        let setting = Setting { dir, programs, options, authority };
        setting.write_pki()?;
        setting.start()
    }

    pub(crate) fn processes(&self) -> &[Process] {
        &self.processes
    }

    fn all(&self) -> Vec<&Process> {
        self.processes.iter().collect()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let Some((etcd, others)) = self.processes.split_first() else {
            return;
        };
        // All at once, but etcd: an API server without it hangs instead of ending.
        let deadline = Instant::now() + GRACE;
        for process in others {
            process.thaw();
            process.signal(Signal::TERM);
        }
        for process in others.iter().rev() {
            process.stop_within(deadline.saturating_duration_since(Instant::now()));
        }
        etcd.stop_within(GRACE);
    }
}

impl Setting<'_> {
    fn start(&self) -> Result<ControlPlane, Error> {
        let ports = Ports {
            etcd: ports::choose(ETCD, None)?,
            api: ports::choose(API_SERVER, self.options.api_port)?,
            controller_manager: ports::choose(CONTROLLER_MANAGER, None)?,
            scheduler: ports::choose(SCHEDULER, None)?,
        };
        let server = format!("https://127.0.0.1:{}", ports.api.number());
        self.write_kubeconfigs(&server)?;
        let (etcd_data, etcd_dir) = self.etcd_data()?;
        let etcd = self.run(ETCD, etcd_args(&etcd_data, &ports), Some(&ports.etcd))?;
        let plane = ControlPlane {
            processes: vec![etcd, self.run(API_SERVER, self.api_server_args(&ports), Some(&ports.api))?],
            _etcd_dir: etcd_dir,
        };
        boot::run(self, plane, &ports)
    }

    fn run(&self, program: &str, args: Vec<OsString>, port: Option<&Port>) -> Result<Process, Error> {
        let log = self.dir.join("log").join(format!("{program}.log"));
        let mut spec = Spec::new(program, self.programs.path(program), log).args(args).env([GARBAGE]);
        spec.port = port.cloned();
        Process::start(spec)
    }

    /// The programs that are clients of the API server.
    fn start_clients(&self, ports: &Ports) -> Result<Vec<Process>, Error> {
        let mut clients = Vec::new();
        if !self.options.api_only {
            let (manager, scheduler) = (&ports.controller_manager, &ports.scheduler);
            clients.push(self.run(CONTROLLER_MANAGER, self.controller_manager_args(manager), Some(manager))?);
            clients.push(self.run(SCHEDULER, self.scheduler_args(scheduler), Some(scheduler))?);
            clients.push(self.run(KWOK, self.kwok_args(), None)?);
        }
        Ok(clients)
    }

    /// etcd's data in memory where there is room: it is written on each change.
    fn etcd_data(&self) -> Result<(PathBuf, Option<Workdir>), Error> {
        let memory = Path::new("/dev/shm");
        let roomy = memory.is_dir() && disk::free(memory).is_some_and(|free| free >= ETCD_ROOM);
        // Where it can't be written to, the folder of the ground does.
        if roomy && let Ok(dir) = Workdir::temporary(memory) {
            return Ok((dir.path().join(ETCD), Some(dir)));
        }
        Ok((self.dir.join(ETCD), None))
    }

    fn pki(&self, name: &str) -> PathBuf {
        self.dir.join("pki").join(name)
    }

    fn user_kubeconfig(&self, program: &str) -> PathBuf {
        self.dir.join("kubeconfigs").join(program)
    }

    fn write_pki(&self) -> Result<(), Error> {
        for folder in ["pki", "kubeconfigs"] {
            let path = self.dir.join(folder);
            std::fs::create_dir_all(&path).map_err(Error::file("make", &path))?;
        }
        let server = self.authority.server(
            API_SERVER,
            &[
                "localhost",
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
                "127.0.0.1",
                SERVICE_ADDRESS,
            ],
        )?;
        let (service_account_key, service_account_public_key) = pki::signing_keys_pem()?;
        for (name, content) in [
            ("ca.crt", self.authority.certificate_pem()),
            ("ca.key", self.authority.key_pem()),
            ("server.crt", server.certificate_pem),
            ("server.key", server.key_pem),
            ("service-account.key", service_account_key),
            ("service-account.pub", service_account_public_key),
        ] {
            write_private(&self.pki(name), &content)?;
        }
        let policy = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy",
 "omitStages": ["RequestReceived"], "rules": [{"level": "Metadata"}]}
"#;
        write_private(&self.dir.join("audit-policy.yaml"), policy)
    }

    fn write_kubeconfigs(&self, server: &str) -> Result<(), Error> {
        let masters = Some("system:masters");
        for (path, user, group) in [
            (self.dir.join("kubeconfig"), "admin", masters),
            (self.user_kubeconfig(CONTROLLER_MANAGER), "system:kube-controller-manager", None),
            (self.user_kubeconfig(SCHEDULER), "system:kube-scheduler", None),
            // It plays all kubelets; a name of its own keeps it apart in the audit log.
            (self.user_kubeconfig(KWOK), KWOK, masters),
        ] {
            let user = self.authority.client(user, group)?;
            let config = kubeconfig::for_certificate(server, self.authority, &user);
            kubeconfig::write(&path, &config)?;
        }
        Ok(())
    }

    fn api_server_args(&self, ports: &Ports) -> Vec<OsString> {
        let mut args = Args::default();
        args.flag("etcd-servers", format!("http://127.0.0.1:{}", ports.etcd.number()));
        args.flag("bind-address", "127.0.0.1");
        args.flag("secure-port", ports.api.number().to_string());
        args.flag("advertise-address", ADVERTISED);
        args.flag("tls-cert-file", self.pki("server.crt"));
        args.flag("tls-private-key-file", self.pki("server.key"));
        args.flag("client-ca-file", self.pki("ca.crt"));
        args.flag("service-account-issuer", ISSUER);
        args.flag("service-account-signing-key-file", self.pki("service-account.key"));
        args.flag("service-account-key-file", self.pki("service-account.pub"));
        args.flag("service-cluster-ip-range", SERVICE_CIDR);
        args.flag("authorization-mode", "Node,RBAC");
        args.flag("enable-admission-plugins", "NodeRestriction");
        args.flag("allow-privileged", "true");
        if self.options.audit {
            args.flag("audit-policy-file", self.dir.join("audit-policy.yaml"));
            args.flag("audit-log-path", self.dir.join("audit.log"));
            // One file: counts must not lose what was rotated away.
            args.flag("audit-log-maxsize", "0");
        }
        args.0
    }

    fn controller_manager_args(&self, port: &Port) -> Vec<OsString> {
        let mut args = Args::default();
        self.client(&mut args, CONTROLLER_MANAGER, port);
        args.flag("controllers", "*");
        args.flag("use-service-account-credentials", "true");
        args.flag("service-account-private-key-file", self.pki("service-account.key"));
        args.flag("root-ca-file", self.pki("ca.crt"));
        args.flag("cluster-signing-cert-file", self.pki("ca.crt"));
        args.flag("cluster-signing-key-file", self.pki("ca.key"));
        args.flag("service-cluster-ip-range", SERVICE_CIDR);
        args.0
    }

    /// What controller-manager and scheduler have in common.
    fn client(&self, args: &mut Args, program: &str, port: &Port) {
        args.flag("kubeconfig", self.user_kubeconfig(program));
        args.flag("bind-address", "127.0.0.1");
        args.flag("secure-port", port.number().to_string());
        args.flag("tls-cert-file", self.pki("server.crt"));
        args.flag("tls-private-key-file", self.pki("server.key"));
        args.flag("leader-elect", "false");
        args.flag("kube-api-qps", "200");
        args.flag("kube-api-burst", "400");
    }

    fn scheduler_args(&self, port: &Port) -> Vec<OsString> {
        let mut args = Args::default();
        self.client(&mut args, SCHEDULER, port);
        args.0
    }

    fn kwok_args(&self) -> Vec<OsString> {
        let mut args = Args::default();
        args.flag("kubeconfig", self.user_kubeconfig(KWOK));
        args.flag("config", self.programs.stages());
        args.flag("manage-all-nodes", "false");
        args.flag(
            "manage-nodes-with-annotation-selector",
            format!("{}={}", boot::NODE_ANNOTATION.0, boot::NODE_ANNOTATION.1),
        );
        args.flag("cidr", "10.245.0.0/16");
        args.flag("node-ip", "10.0.0.1");
        args.flag("node-name", "kwok-controller");
        args.flag("node-lease-duration-seconds", "40");
        args.0
    }
}

fn etcd_args(data: &Path, ports: &Ports) -> Vec<OsString> {
    let url = format!("http://127.0.0.1:{}", ports.etcd.number());
    let mut args = Args::default();
    args.flag("data-dir", data);
    args.flag("listen-client-urls", &url);
    args.flag("advertise-client-urls", &url);
    // Alone in its cluster: any port does, and nobody needs to know it.
    args.flag("listen-peer-urls", "http://127.0.0.1:0");
    args.flag("log-level", "warn");
    // The data doesn't outlive the process.
    args.flag("unsafe-no-fsync", "true");
    args.flag("quota-backend-bytes", (8_u64 << 30).to_string());
    args.0
}

/// Flags, as `--name=value`.
#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn flag(&mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) {
        let mut flag = OsString::from(format!("--{name}="));
        flag.push(value);
        self.0.push(flag);
    }
}
