//! The whole product on one machine: a cluster, the operator with its own rights, an agent
//! and the CRM of `examples/`, and everything of `examples/` applied.
//!
//! kwok only pretends to run pods. So the operator and the relay run as processes of this
//! machine, as their ServiceAccounts, and one agent and one CRM stand for the pods of all pools
//! and of all tenants with pods of their own.

mod faults;
mod guide;
mod http;
mod ledger;
mod meters;
mod parts;
mod tenants;
mod traffic;

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::{Devcluster, Error, Options, Progress, Signals, process};
use parts::Parts;
use tenants::Outcome;

/// How many things are done in the CRMs before what was counted is looked at.
const DAY: usize = 150;

/// The operator's namespace.
const NAMESPACE: &str = "tenantry-system";

/// What the demo does, and where.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Ends by itself: exit code 0 when every Tenant is Ready, users came and went through the
    /// CRM, and what its tables hold is what the Tenants' status says.
    #[arg(long)]
    once: bool,
    /// A folder for everything: `kubeconfig`, `env` (variables for a shell), `log/`.
    #[arg(long, default_value = "demo")]
    dir: PathBuf,
    /// Writes each API call to DIR/audit.log (level Metadata).
    #[arg(long)]
    audit: bool,
    /// Adds so many Tenants, of all tiers, to those of the examples.
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    more_tenants: usize,
    /// Kills so many processes (operator, relay, agent, PostgreSQL) at random while people work.
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    kills: usize,
    /// How many seconds the Tenants have to become Ready.
    #[arg(long, default_value_t = 180, value_name = "SECONDS")]
    within: u64,
}

/// Runs the demo until a signal comes, or once.
///
/// # Errors
/// When something that is needed is missing, a part ends that should stay, or (with
/// `--once`) a Tenant isn't Ready in time.
pub fn run(args: &Args) -> Result<(), Error> {
    let signals = Signals::take()?;
    match show(args, &signals) {
        // Ctrl-C reaches every program that runs at that moment; its failure is no news.
        Err(_) if signals.arrived() => Ok(()),
        result => result,
    }
}

fn show(args: &Args, signals: &Signals) -> Result<(), Error> {
    let tenantry = beside_this_program("tenantry")?;
    let crm = beside_this_program("crm")?;
    let repository = repository()?;
    let options =
        Options { dir: Some(args.dir.clone()), audit: args.audit, progress: Progress::Shown, ..Options::default() };
    let steps = Steps(Instant::now());
    let within = Duration::from_secs(args.within);
    let Some(mut ground) = Devcluster::start_unless(options, signals)? else { return Ok(()) };
    steps.done("a cluster with two pretended nodes, and PostgreSQL");

    install_chart(&ground, &repository)?;
    steps.done("the chart: resources, roles, admission policy");
    let folder = ground.dir().join("demo");
    let overlay = write_overlay(&ground, &repository, &folder.join("examples"))?;
    let ledger = ledger::create(ground.postgres(), &tenantry)?;
    let mut parts = Parts::start(&mut ground, &tenantry, &crm, &ledger, &folder)?;
    steps.done("the operator as its ServiceAccount with its ledger, an agent, and the CRM");
    if signals.arrived() {
        return Ok(());
    }

    let mut kubectl = ground.kubectl();
    complete(kubectl.args(["apply", "--server-side", "-k"]).arg(&overlay))?;
    if args.more_tenants > 0 {
        let file = tenants::write_more(&folder, args.more_tenants)?;
        complete(ground.kubectl().args(["apply", "--server-side", "-f"]).arg(&file))?;
    }
    steps.done("kubectl apply --server-side -k examples");
    parts.start_relay(&mut ground, &tenantry, "main", &folder)?;
    steps.done("the relay of DatabaseServer main");
    let outcome = parts.stay_while(&mut ground, |client| tenants::ready(client, signals, &steps, within))?;
    match outcome {
        Outcome::Interrupted => return Ok(()),
        Outcome::Late(reasons) if args.once => return Err(late(within, &reasons)),
        // It stays up, so that one can look.
        Outcome::Late(reasons) => eprintln!("{}", late(within, &reasons)),
        Outcome::Ready(count) => {
            steps.done(&format!("all {count} Tenants are Ready"));
            for tenant in guide::OF_EACH_TIER {
                let user = guide::create_user(parts.crm_port, tenant)?;
                steps.done(&format!("a user of {tenant}, created through the CRM: {user}"));
            }
            let tenants = tenants::names(&mut ground.kubectl())?;
            let worker = work(&parts, &tenants, &steps)?;
            if args.kills > 0 {
                let done = faults::work_through(&parts, &mut ground, &tenants, args.kills, &steps)?;
                steps.done(&format!("{} made, {} removed, {} refused", done.made, done.removed, done.refused));
            }
            let crm_port = parts.crm_port;
            let table = parts.stay_while(&mut ground, |client| meters::agree(client, crm_port, within))?;
            steps.done("what the CRM's tables hold is what the Tenants' status says");
            if args.once {
                send_again(&tenantry, &ground, &parts, &steps, within)?;
                let table = parts.stay_while(&mut ground, |client| meters::agree(client, crm_port, within))?;
                print!("\n{table}");
                return Ok(());
            }
            print!("\n{table}\n");
            let table = complete(ground.kubectl().args(["get", "tenants,pools"]))?;
            print!("{table}\n{}", guide::text(&ground, parts.crm_port, &overlay));
            let _business = traffic::Business::start(worker);
            println!("ready");
            return parts.supervise(&mut ground, signals);
        }
    }
    parts.supervise(&mut ground, signals)
}

/// A day's work in all CRMs; who did it, to go on with.
fn work(parts: &Parts, tenants: &[String], steps: &Steps) -> Result<traffic::Worker, Error> {
    let mut worker = traffic::Worker::new(parts.crm_port, tenants, 1);
    let done = worker.work(DAY)?;
    steps.done(&format!(
        "users, accounts and opportunities through the CRM: {} made, {} removed, {} refused",
        done.made, done.removed, done.refused
    ));
    let refusal = worker.fill(guide::ON_THE_FREE_PLAN, 20)?;
    steps.done(&format!("one more user of {}, and the answer: {refusal}", guide::ON_THE_FREE_PLAN));
    Ok(worker)
}

/// Sends all usage of the last hour once more, and waits until the operator has seen all of it
/// twice: none of it may count again.
fn send_again(
    tenantry: &Path,
    ground: &Devcluster,
    parts: &Parts,
    steps: &Steps,
    patience: Duration,
) -> Result<(), Error> {
    let before = parts.duplicates()?;
    let mut resync = Command::new(tenantry);
    resync.args(["ledger", "resync", "--since", "1h"]).env("KUBECONFIG", ground.kubeconfig());
    let said = complete(&mut resync)?;
    // A table of databases, and a sentence that begins with their sum.
    let sum = said.trim().lines().last().and_then(|line| line.split_whitespace().next());
    let events: u64 = sum.and_then(|sum| sum.parse().ok()).unwrap_or(0);
    let since = Instant::now();
    loop {
        let duplicates = parts.duplicates()? - before;
        if events > 0 && duplicates >= events {
            steps.done(&format!("{events} events were sent once more: {duplicates} duplicates, which count nothing"));
            return Ok(());
        }
        if since.elapsed() > patience {
            return Err(Error::Missing {
                what: format!("of {events} events that were sent once more, {duplicates} came as duplicates"),
                hint: "log/relay.log and log/operator.log in the demo's folder tell more".into(),
            });
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The steps that are done, each with the time since the start.
pub(crate) struct Steps(Instant);

impl Steps {
    pub(crate) fn done(&self, what: &str) {
        println!("{:6.1} s  {what}", self.0.elapsed().as_secs_f64());
    }
}

fn late(within: Duration, reasons: &str) -> Error {
    Error::Missing {
        what: format!("not every Tenant is Ready after {} s", within.as_secs()),
        hint: format!("these are the reasons, and log/operator.log tells more:\n{reasons}"),
    }
}

/// A program that was built together with this one.
fn beside_this_program(name: &str) -> Result<PathBuf, Error> {
    let this = std::env::current_exe().map_err(Error::file("find", Path::new("/proc/self/exe")))?;
    let program = this.with_file_name(name);
    if program.is_file() {
        return Ok(program);
    }
    Err(Error::Missing {
        what: format!("there is no {}", program.display()),
        hint: "build it first: `make demo`, or `cargo build --workspace`".into(),
    })
}

/// The folder with `charts/` and `examples/`: where one is, or where this was built.
fn repository() -> Result<PathBuf, Error> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let is_it = |path: &PathBuf| path.join("examples/kustomization.yaml").is_file();
    [PathBuf::from("."), built].into_iter().find(is_it).and_then(|path| path.canonicalize().ok()).ok_or_else(|| {
        Error::Missing {
            what: "there is no examples/kustomization.yaml here".into(),
            hint: "run the demo in the repository's folder".into(),
        }
    })
}

fn install_chart(ground: &Devcluster, repository: &Path) -> Result<(), Error> {
    let mut helm = ground.helm();
    helm.args(["upgrade", "--install", "tenantry", "--namespace", NAMESPACE, "--create-namespace"]);
    // The operator runs as a process of this machine instead.
    helm.args(["--set", "replicas=0"]).arg(repository.join("charts/tenantry"));
    complete(&mut helm).map(drop)
}

/// The examples with this machine's PostgreSQL, as a user would set theirs: an overlay.
fn write_overlay(ground: &Devcluster, repository: &Path, folder: &Path) -> Result<PathBuf, Error> {
    fs::create_dir_all(folder).map_err(Error::file("make", folder))?;
    let folder = folder.canonicalize().map_err(Error::file("find", folder))?;
    let examples = relative(&folder, &repository.join("examples"));
    let postgres = ground.postgres();
    let text = format!(
        "# The examples, with the PostgreSQL of this demo:\n\
         # kubectl apply --server-side -k {}\n\
         apiVersion: kustomize.config.k8s.io/v1beta1\n\
         kind: Kustomization\n\
         resources: [{}]\n\
         patches:\n\
         - target: {{kind: DatabaseServer, name: main}}\n\
         \x20 patch: |\n\
         \x20   - {{op: replace, path: /spec/admin/host, value: {}}}\n\
         \x20   - {{op: replace, path: /spec/admin/port, value: {}}}\n\
         \x20   - {{op: replace, path: /spec/network/to/0/ipBlock/cidr, value: 127.0.0.1/32}}\n",
        folder.display(),
        json!(examples),
        postgres.host(),
        postgres.port(),
    );
    let file = folder.join("kustomization.yaml");
    fs::write(&file, text).map_err(Error::file("write", &file))?;
    Ok(folder)
}

/// The way from one folder to another; both absolute, without links.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let common = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(common).map(|_| Component::ParentDir);
    up.chain(to.components().skip(common)).collect()
}

/// Runs a command to its end; its output, when it succeeds.
fn complete(command: &mut Command) -> Result<String, Error> {
    let name = format!("{command:?}");
    let output = command.output().map_err(Error::file("start", Path::new(command.get_program())))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(Error::Command {
        command: name,
        status: process::describe(output.status),
        output: process::last_lines(&(text(&output.stdout) + &text(&output.stderr)), 12),
    })
}
