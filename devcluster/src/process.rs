//! Child processes that never outlive this one.
//!
//! Each child is started through `setpriv --pdeathsig KILL`, so the kernel ends it when
//! this process ends, however that happens. That signal is sent when the *thread* that
//! started the child ends; so one thread that lives as long as the process starts all.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::{Error, ports::Port};

/// How long a program may take to end by itself before it is killed.
const GRACE: Duration = Duration::from_secs(2);

/// What to run, and how.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// The name under which messages speak of it.
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// Standard output and error are appended here.
    pub(crate) log: PathBuf,
    /// Variables beside `PATH`, `HOME` and `TMPDIR`.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Another user to run as; needs root.
    pub(crate) user: Option<String>,
    /// The signal that asks the program to end.
    pub(crate) stop_signal: Signal,
    /// Where it listens: held for it, also while it is away.
    pub(crate) port: Option<Port>,
}

impl Spec {
    /// A program without arguments that runs as this user and ends on SIGTERM.
    pub(crate) fn new(name: &str, program: PathBuf, log: PathBuf) -> Spec {
        Spec {
            name: name.to_owned(),
            program,
            args: Vec::new(),
            log,
            env: Vec::new(),
            user: None,
            stop_signal: Signal::TERM,
            port: None,
        }
    }

    pub(crate) fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Spec {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub(crate) fn env(mut self, env: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>) -> Spec {
        for (name, value) in env {
            self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        }
        self
    }
}

/// One program of the ground, which a test may stop, freeze, kill and start again.
#[derive(Debug)]
pub struct Process {
    spec: Spec,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    pidfd: Arc<OwnedFd>,
}

impl Process {
    /// Starts the program; it may not be ready yet, or end at once.
    pub(crate) fn start(spec: Spec) -> Result<Process, Error> {
        let process = Process { spec, running: Mutex::new(None) };
        process.start_again()?;
        Ok(process)
    }

    /// The program's name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// The file that holds what the program printed.
    pub fn log_path(&self) -> &Path {
        &self.spec.log
    }

    /// The process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.lock().as_ref().map(|running| running.child.id())
    }

    /// Starts the program with the same arguments. Does nothing while it runs.
    pub fn start_again(&self) -> Result<(), Error> {
        let mut slot = self.lock();
        if let Some(running) = slot.as_mut() {
            if !exited(&running.pidfd, Some(Duration::ZERO)) {
                return Ok(());
            }
            reap(&mut running.child);
            *slot = None;
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.spec.log)
            .map_err(Error::file("write", &self.spec.log))?;
        *slot = Some(spawn(&self.spec, log)?);
        Ok(())
    }

    /// Asks the program to end, kills it after two seconds, and waits until it is gone.
    pub fn stop(&self) {
        self.stop_within(GRACE);
    }

    pub(crate) fn stop_within(&self, grace: Duration) {
        let mut slot = self.lock();
        if let Some(running) = slot.as_mut() {
            signal(&running.pidfd, self.spec.stop_signal);
            // A frozen program can't obey.
            signal(&running.pidfd, Signal::CONT);
            if !exited(&running.pidfd, Some(grace)) {
                signal(&running.pidfd, Signal::KILL);
            }
            reap(&mut running.child);
        }
        *slot = None;
    }

    /// Ends the program by SIGKILL and waits until it is gone.
    pub fn kill(&self) {
        let mut slot = self.lock();
        if let Some(running) = slot.as_mut() {
            signal(&running.pidfd, Signal::KILL);
            reap(&mut running.child);
        }
        *slot = None;
    }

    /// Stops the program's clock (SIGSTOP): connections stay open, nothing answers.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a frozen program go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    pub(crate) fn signal(&self, which: Signal) {
        if let Some(running) = self.lock().as_ref() {
            signal(&running.pidfd, which);
        }
    }

    /// A descriptor that becomes readable when the program ends.
    pub(crate) fn pidfd(&self) -> Option<Arc<OwnedFd>> {
        self.lock().as_ref().map(|running| running.pidfd.clone())
    }

    /// Waits at most this long for the program to end; tells how it ended, if it did.
    pub(crate) fn wait(&self, timeout: Duration) -> Option<ExitStatus> {
        // Not held while waiting: others may freeze or kill meanwhile.
        let pidfd = self.pidfd()?;
        if !exited(&pidfd, Some(timeout)) {
            return None;
        }
        let mut slot = self.lock();
        let status = slot.as_mut().and_then(|running| reap(&mut running.child));
        *slot = None;
        status
    }

    /// The error for a program that ended by itself.
    pub(crate) fn died(&self, status: ExitStatus) -> Error {
        Error::Died {
            program: self.spec.name.clone(),
            status: describe(status),
            log: self.spec.log.clone(),
            tail: tail(&self.spec.log, 12),
        }
    }

    /// Waits until `ready` holds, looking again every 10 ms; fails when the program
    /// ends first, or when the time is over. `ready` tells what is still missing.
    pub(crate) fn await_ready(
        &self,
        timeout: Duration,
        mut ready: impl FnMut() -> Result<(), String>,
    ) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            let state = match ready() {
                Ok(()) => return Ok(()),
                Err(state) => state,
            };
            if let Some(status) = self.wait(Duration::from_millis(10)) {
                return Err(self.died(status));
            }
            if start.elapsed() > timeout {
                return Err(Error::NotReady {
                    program: self.spec.name.clone(),
                    state,
                    after: timeout,
                    log: self.spec.log.clone(),
                    tail: tail(&self.spec.log, 12),
                });
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        // The state is a handle and nothing else: a panic elsewhere leaves it usable.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// How a program ended, in words.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// The last lines of a file; empty when it can't be read.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    const WINDOW: u64 = 16 * 1024;
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(WINDOW)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    last_lines(&read().unwrap_or_default(), lines)
}

pub(crate) fn last_lines(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The processes whose parent is `pid`, itself excluded.
pub(crate) fn children_of(pid: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|candidate| parent_of(*candidate) == Some(pid))
        .collect()
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may itself hold spaces and parentheses.
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(1)?.parse().ok()
}

/// A handle on any process, or nothing when it is gone.
pub(crate) fn open(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Sends a signal; a process that is gone already needs none.
pub(crate) fn signal(pidfd: &OwnedFd, signal: Signal) {
    let _ = pidfd_send_signal(pidfd, signal);
}

/// Waits for the end of a process (without a timeout: as long as it takes).
pub(crate) fn exited(pidfd: &OwnedFd, timeout: Option<Duration>) -> bool {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec::try_from(left).expect("a timeout of seconds fits the kernel's time type"));
        let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
        match poll(&mut fds, left.as_ref()) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => unreachable!("poll on one process descriptor: {error}"),
        }
    }
}

fn reap(child: &mut Child) -> Option<ExitStatus> {
    child.wait().ok()
}

/// A command that ends with this process, runs as `user`, and gets no terminal signals.
pub(crate) fn guarded(program: &Path, user: Option<&str>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if let Some(user) = user {
        command.args(["--reuid", user, "--regid", user, "--init-groups"]);
    }
    // This process may end between the fork and setpriv's call, which would then wait
    // for a death that has been already: so the shell compares parents.
    command
        .args(["--", "sh", "-c", r#"test "$PPID" = "$0" || exit 125; exec "$@""#])
        .arg(std::process::id().to_string())
        .arg(program)
        .stdin(Stdio::null())
        // A group of its own: Ctrl-C must reach this process alone, which then ends
        // the others in their order.
        .process_group(0);
    command
}

fn spawn(spec: &Spec, log: File) -> Result<Running, Error> {
    let start = || -> io::Result<Command> {
        let mut command = guarded(&spec.program, spec.user.as_deref());
        command
            .args(&spec.args)
            // Many of these programs take settings from variables (ETCD_…, PG…).
            .env_clear()
            .envs(["PATH", "HOME", "TMPDIR"].into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .envs(spec.env.iter().map(|(name, value)| (name, value)))
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command)
    };
    let command = start().map_err(Error::file("write", &spec.log))?;
    let (answer, started) = mpsc::sync_channel(1);
    spawner().send((command, answer)).expect("the spawning thread lives as long as the process");
    started.recv().expect("the spawning thread answers each request").map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::Missing {
            what: "the program setpriv is missing".into(),
            hint: "install the package util-linux".into(),
        },
        _ => Error::File { action: "start", path: spec.program.clone(), source },
    })
}

type Request = (Command, mpsc::SyncSender<io::Result<Running>>);

fn spawner() -> mpsc::Sender<Request> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Request>>> = OnceLock::new();
    let sender = SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        std::thread::Builder::new()
            .name("devcluster-spawner".into())
            .spawn(move || {
                for (mut command, answer) in requests {
                    let running = command.spawn().and_then(|child| {
                        let pid = Pid::from_child(&child);
                        let pidfd = Arc::new(pidfd_open(pid, PidfdFlags::empty())?);
                        Ok(Running { child, pidfd })
                    });
                    // Whoever asked may have been cancelled; its child then ends by drop.
                    let _ = answer.send(running);
                }
            })
            .expect("a thread can be started");
        Mutex::new(sender)
    });
    sender.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
