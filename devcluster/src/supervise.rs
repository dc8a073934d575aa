//! For programs that hold a ground in the foreground: signals, and the death of parts.

use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::process::{self, Process};
use crate::{Devcluster, Error, Options};

/// How long an interrupted start may take to clean up.
const CLEAN_UP: Duration = Duration::from_secs(10);
/// How often it is told to end: it may have started another program meanwhile.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Becomes readable at the first SIGINT or SIGTERM, which no longer end this process.
#[derive(Debug)]
pub struct Signals(UnixStream);

impl Signals {
    /// Takes over both signals, from now on.
    pub fn take() -> Result<Signals, Error> {
        let pipe = || -> std::io::Result<UnixStream> {
            let (reader, writer) = UnixStream::pair()?;
            for signal in [SIGINT, SIGTERM] {
                signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?;
            }
            Ok(reader)
        };
        pipe().map(Signals).map_err(|source| Error::Missing {
            what: format!("signals can't be caught: {source}"),
            hint: "raise the limit of open files (ulimit -n)".into(),
        })
    }

    /// Whether one has come.
    pub fn arrived(&self) -> bool {
        readable(&[&self.0], Some(Duration::ZERO))[0]
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Devcluster {
    /// Like [`Devcluster::start`], but gives up at a signal: ends what was started,
    /// a build too, and returns nothing.
    pub fn start_unless(options: Options, signals: &Signals) -> Result<Option<Devcluster>, Error> {
        let (done, mut tell) = UnixStream::pair().map_err(|source| Error::Missing {
            what: format!("no pipe can be made: {source}"),
            hint: "raise the limit of open files (ulimit -n)".into(),
        })?;
        let start = std::thread::spawn(move || {
            let result = Devcluster::start(options);
            // Nobody listens after an interrupt that took too long.
            let _ = tell.write_all(&[1]);
            result
        });
        let interrupted = readable(&[&done, &signals.0], None)[1];
        if interrupted {
            // When its programs end, the start fails, and cleans up as it does for any
            // failure.
            let since = Instant::now();
            while !readable(&[&done], Some(TELL_EVERY))[0] {
                for child in process::children_of(std::process::id()) {
                    if let Some(child) = process::open(child) {
                        process::signal(&child, Signal::TERM);
                    }
                }
                if since.elapsed() > CLEAN_UP {
                    // It may be waiting for another builder's lock. Programs end with
                    // this process, folders are removed by the next start.
                    return Ok(None);
                }
            }
        }
        let result = start.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        if interrupted { Ok(None) } else { result.map(Some) }
    }

    /// Waits until `until` is readable ([`Signals`], say); fails when one of the programs,
    /// or one of `others`, ends before.
    pub fn supervise(&self, until: &impl AsFd, others: &[&Process]) -> Result<(), Error> {
        let watched: Vec<_> = self
            .processes()
            .chain(others.iter().copied())
            .filter_map(|process| Some((process, process.pidfd()?)))
            .collect();
        loop {
            let mut fds: Vec<&dyn AsFd> = vec![until];
            fds.extend(watched.iter().map(|(_, pidfd)| pidfd as &dyn AsFd));
            if readable(&fds, None)[0] {
                return Ok(());
            }
            for (process, _) in &watched {
                if let Some(status) = process.wait(Duration::ZERO) {
                    return Err(process.died(status));
                }
            }
        }
    }
}

/// Waits until one of the descriptors is readable or closed; tells which are.
fn readable(fds: &[&dyn AsFd], timeout: Option<Duration>) -> Vec<bool> {
    let timeout =
        timeout.map(|timeout| Timespec::try_from(timeout).expect("a timeout of seconds fits the kernel's time type"));
    let mut polled: Vec<PollFd<'_>> =
        fds.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)).collect();
    loop {
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => unreachable!("poll on open descriptors: {error}"),
        }
    }
    polled.iter().map(|fd| !fd.revents().is_empty()).collect()
}
