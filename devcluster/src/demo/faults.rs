//! What goes wrong in a bad week, in a minute: processes that are killed while people work.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::Steps;
use super::parts::Parts;
use super::traffic::{Tally, Worker};
use crate::{Devcluster, Error};

/// How many people work at a time.
const WORKERS: u64 = 4;
/// Between two kills, in milliseconds.
const QUIET: std::ops::Range<u64> = 200..1500;
/// How often it is tried to start something again whose port or folder isn't free yet.
const ATTEMPTS: u32 = 20;

/// Lets people work until `kills` processes were killed, chosen at random.
pub(super) fn work_through(
    parts: &Parts,
    ground: &mut Devcluster,
    tenants: &[String],
    kills: usize,
    steps: &Steps,
) -> Result<Tally, Error> {
    let ended = AtomicBool::new(false);
    let seed = rand::random::<u32>();
    steps.done(&format!("{kills} processes are killed while {WORKERS} people work (seed {seed})"));
    let mut random = StdRng::seed_from_u64(u64::from(seed));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (1..=WORKERS)
            .map(|number| {
                let mut worker = Worker::new(parts.crm_port, tenants, u64::from(seed) + number);
                let ended = &ended;
                scope.spawn(move || {
                    let mut tally = Tally::default();
                    while !ended.load(Ordering::Relaxed) {
                        // What fails while its database is away is simply not done.
                        match worker.work(1) {
                            Ok(done) => tally.add(done),
                            Err(_) => std::thread::sleep(Duration::from_millis(50)),
                        }
                    }
                    tally
                })
            })
            .collect();
        let killed = (0..kills).try_for_each(|_| {
            std::thread::sleep(Duration::from_millis(random.random_range(QUIET)));
            kill_one(parts, ground, &mut random)
        });
        ended.store(true, Ordering::Relaxed);
        let mut tally = Tally::default();
        for worker in workers {
            tally.add(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        killed.map(|()| tally)
    })
}

fn kill_one(parts: &Parts, ground: &mut Devcluster, random: &mut StdRng) -> Result<(), Error> {
    let processes = parts.mortal();
    let choice = random.random_range(0..=processes.len());
    let postgres = ground.postgres();
    match processes.get(choice) {
        Some(process) => {
            process.kill();
            patiently(|| process.start_again())?;
        }
        None => {
            postgres.kill();
            patiently(|| postgres.start_again())?;
        }
    }
    parts.tell_pids(ground)
}

fn patiently(start: impl Fn() -> Result<(), Error>) -> Result<(), Error> {
    let mut attempt = 1;
    loop {
        match start() {
            Err(_) if attempt < ATTEMPTS => std::thread::sleep(Duration::from_millis(250)),
            ended => return ended,
        }
        attempt += 1;
    }
}
