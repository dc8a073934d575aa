//! How many tenants are migrated at a time: on each server as many as it has connections for
//! that, and of one Application at most half of them while there are others. So a release whose
//! migrations take hours holds up no other server's tenants, and no other Application's.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use super::world::World;

/// How many runs there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    /// In all.
    all: usize,
    /// Of one Application.
    share: usize,
}

impl Room {
    fn new(all: usize, several_applications: bool) -> Self {
        let share = if several_applications { (all / 2).max(1) } else { all };
        Self { all, share }
    }
}

/// The runs on one server; `W` is one that waits.
struct Lanes<W> {
    /// By Application.
    lanes: BTreeMap<String, Lane<W>>,
    /// How many came so far.
    arrivals: u64,
    /// Reconciles that wait for the end of a run.
    onlookers: usize,
}

struct Lane<W> {
    running: usize,
    /// With the number of their arrival.
    waiting: VecDeque<(u64, W)>,
}

impl<W> Default for Lanes<W> {
    fn default() -> Self {
        Self { lanes: BTreeMap::new(), arrivals: 0, onlookers: 0 }
    }
}

impl<W> Lanes<W> {
    fn lane(&mut self, application: &str) -> &mut Lane<W> {
        let new = || Lane { running: 0, waiting: VecDeque::new() };
        self.lanes.entry(application.to_owned()).or_insert_with(new)
    }

    fn wait(&mut self, application: &str, who: W) {
        self.arrivals += 1;
        let arrival = self.arrivals;
        self.lane(application).waiting.push_back((arrival, who));
    }

    /// The next one that may run: of the Application that runs least, whoever came first.
    fn next(&mut self, room: Room) -> Option<(String, W)> {
        let running: usize = self.lanes.values().map(|lane| lane.running).sum();
        if running >= room.all {
            return None;
        }
        let admitted = self.lanes.iter_mut().filter(|(_, lane)| lane.running < room.share);
        let waiting = admitted.filter_map(|(name, lane)| Some((lane.waiting.front()?.0, name, lane)));
        let (_, application, lane) = waiting.min_by_key(|(arrival, _, lane)| (lane.running, *arrival))?;
        let (_, who) = lane.waiting.pop_front()?;
        lane.running += 1;
        Some((application.clone(), who))
    }

    fn leave(&mut self, application: &str) {
        let lane = self.lane(application);
        lane.running -= 1;
        if lane.running == 0 && lane.waiting.is_empty() {
            self.lanes.remove(application);
        }
    }

    fn is_idle(&self) -> bool {
        self.lanes.is_empty() && self.onlookers == 0
    }
}

/// Who is migrated on which server, and who waits for that.
#[derive(Default)]
pub(super) struct Slots {
    servers: Mutex<HashMap<String, Lanes<oneshot::Sender<Slot>>>>,
}

impl Slots {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Lanes<oneshot::Sender<Slot>>>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A run's right to be at work on a server; given back when dropped.
pub(super) struct Slot {
    world: Arc<World>,
    server: String,
    application: String,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(lanes) = self.world.migrations.slots.lock().get_mut(&self.server) {
            lanes.leave(&self.application);
        }
        self.world.call_migrations(&self.server);
    }
}

/// A reconcile's leave to wait for a run; given back when dropped.
pub(super) struct Onlooker {
    world: Arc<World>,
    server: String,
}

impl Drop for Onlooker {
    fn drop(&mut self) {
        let mut all = self.world.migrations.slots.lock();
        let Some(lanes) = all.get_mut(&self.server) else { return };
        lanes.onlookers -= 1;
        if lanes.is_idle() {
            all.remove(&self.server);
        }
    }
}

impl World {
    /// Waits until there is room for one more run on a server; nothing when the operator ends.
    pub(super) async fn migration_slot(self: &Arc<Self>, server: &str, application: &str) -> Option<Slot> {
        let (sender, called) = oneshot::channel();
        self.migrations.slots.lock().entry(server.to_owned()).or_default().wait(application, sender);
        self.call_migrations(server);
        called.await.ok()
    }

    /// Calls those that wait for a server, for as many as there is room.
    fn call_migrations(self: &Arc<Self>, server: &str) {
        let room = self.room(server);
        let mut called = Vec::new();
        let mut all = self.migrations.slots.lock();
        if let Some(lanes) = all.get_mut(server) {
            called.extend(std::iter::from_fn(|| lanes.next(room)));
            if lanes.is_idle() {
                all.remove(server);
            }
        }
        drop(all);
        for (application, sender) in called {
            let slot = Slot { world: Arc::clone(self), server: server.to_owned(), application };
            // Where nobody waits any more it comes back, and is given back.
            drop(sender.send(slot));
        }
    }

    /// Leave to wait for a run on a server within a reconcile, or nothing: while there are
    /// several Applications, at most half of the reconciles that may be at work there do.
    pub(super) fn onlooker(self: &Arc<Self>, server: &str) -> Option<Onlooker> {
        let seats = self.tenant_seats();
        let most = Room::new(seats, self.has_several_applications()).share;
        let mut all = self.migrations.slots.lock();
        let lanes = all.entry(server.to_owned()).or_default();
        if lanes.onlookers >= most {
            return None;
        }
        lanes.onlookers += 1;
        Some(Onlooker { world: Arc::clone(self), server: server.to_owned() })
    }

    fn room(&self, server: &str) -> Room {
        let most = usize::from(self.args.migration_concurrency);
        let places = self.databases.get(server).map_or(most, |connected| connected.server.migration_places());
        Room::new(most.min(places), self.has_several_applications())
    }

    fn has_several_applications(&self) -> bool {
        self.stores.applications.len() > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who may run now, one after the other.
    fn called(lanes: &mut Lanes<u32>, room: Room) -> Vec<u32> {
        std::iter::from_fn(|| lanes.next(room)).map(|(_, who)| who).collect()
    }

    #[test]
    fn one_application_alone_has_all_places() {
        let mut lanes = Lanes::default();
        (0..6).for_each(|who| lanes.wait("crm", who));
        let room = Room::new(4, false);
        assert_eq!(called(&mut lanes, room), [0, 1, 2, 3]);
        lanes.leave("crm");
        assert_eq!(called(&mut lanes, room), [4], "a place was left, and is had in turn");
    }

    #[test]
    fn a_release_leaves_half_of_the_places_to_others() {
        let mut lanes = Lanes::default();
        (0..1_000).for_each(|who| lanes.wait("crm", who));
        let room = Room::new(4, true);
        assert_eq!(called(&mut lanes, room), [0, 1]);
        lanes.wait("shop", 5_000);
        assert_eq!(called(&mut lanes, room), [5_000], "not behind the thousand");
        lanes.wait("blog", 6_000);
        lanes.wait("blog", 6_001);
        assert_eq!(called(&mut lanes, room), [6_000], "there are four places in all");
        lanes.leave("crm");
        assert_eq!(called(&mut lanes, room), [2], "of two with as little at work, who came first");
        lanes.leave("shop");
        assert_eq!(called(&mut lanes, room), [6_001], "the release has its half");
    }

    #[test]
    fn there_is_room_for_one_where_there_is_room_at_all() {
        assert_eq!(Room::new(1, true), Room { all: 1, share: 1 });
        assert_eq!(Room::new(8, true), Room { all: 8, share: 4 });
        assert_eq!(Room::new(8, false), Room { all: 8, share: 8 });
    }

    #[test]
    fn what_is_over_leaves_nothing() {
        let mut lanes = Lanes::default();
        lanes.wait("crm", 1);
        assert_eq!(called(&mut lanes, Room::new(1, false)), [1]);
        assert!(!lanes.is_idle());
        lanes.leave("crm");
        assert!(lanes.is_idle());
    }
}
