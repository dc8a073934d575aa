//! Keeps the trouble of some database servers from taking the reconciles of all others: while
//! there is more than one server, at most half of those that may run at a time are at work on
//! one, and a share of all is kept free for each of the others.
//!
//! Who finds no seat is not made to wait inside a reconcile, which would take the place that is
//! to be kept free: it is put on the server's list and looked at again when a seat is free.
//!
//! While a server is away, a seat of it is given to the next one only after a while: there is
//! nothing to do but to say so in a status, and a thousand of these at once would take the API
//! server from those who can be served.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    mem::{Discriminant, discriminant},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{namespaces::push_owner, world::World};
use crate::cluster::Owner;

/// After how long an object without a seat is looked at in any case, should all who have one
/// end without a word.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(15);

/// How long a seat on a server that is away stays empty.
const HELD: Duration = Duration::from_secs(1);

/// Who is at work on which server. Tenants and pools have queues of their own, and seats of
/// their own.
#[derive(Default)]
pub(super) struct Bulkheads {
    halls: Mutex<HashMap<Discriminant<Owner>, Hall>>,
}

/// How many may be at work at a time, and on how many servers.
#[derive(Clone, Copy, Debug)]
struct Size {
    seats: usize,
    servers: usize,
}

impl Size {
    /// How many may be at work on one server. With one server there is nobody to be kept free for.
    fn most(self) -> usize {
        if self.servers > 1 { (self.seats / 2).max(1) } else { self.seats }
    }

    /// How many seats nobody else takes from a server: half of all are divided so.
    fn share(self) -> usize {
        if self.servers > 1 { (self.seats / 2 / self.servers).max(1) } else { 0 }
    }
}

/// The seats of one queue's reconciles, by server. Servers without any are left out.
#[derive(Default)]
struct Hall {
    servers: BTreeMap<String, Seats>,
}

#[derive(Default)]
struct Seats {
    taken: usize,
    /// Of these, the ones on which nobody sits: the server is away.
    held: usize,
    /// Those that wait, in their order; once each.
    order: VecDeque<Owner>,
    waiting: BTreeSet<Owner>,
}

impl Hall {
    /// How many more may work on a server.
    fn room(&self, server: &str, size: Size) -> usize {
        let share = size.share();
        let taken = self.servers.get(server).map_or(0, |seats| seats.taken);
        let all: usize = self.servers.values().map(|seats| seats.taken).sum();
        // What is left of the shares of those that have some of it, and of all others.
        let kept: usize = self.servers.values().map(|seats| share.saturating_sub(seats.taken)).sum();
        let kept = kept + share * size.servers.saturating_sub(self.servers.len());
        let of_all = size.seats.saturating_sub(all + kept);
        (share.saturating_sub(taken) + of_all).min(size.most().saturating_sub(taken))
    }

    fn enter(&mut self, server: &str, owner: &Owner, size: Size) -> bool {
        // In the hall first: its share is its own then, and not one of those that have none yet.
        self.servers.entry(server.to_owned()).or_default();
        let has_room = self.room(server, size) > 0;
        let seats = self.servers.entry(server.to_owned()).or_default();
        if !has_room {
            if seats.waiting.insert(owner.clone()) {
                seats.order.push_back(owner.clone());
            }
            return false;
        }
        if seats.waiting.remove(owner) {
            seats.order.retain(|other| other != owner);
        }
        seats.taken += 1;
        true
    }

    /// Gives a seat back; those that are to be looked at are as many as there is room for, since
    /// the first of them may be gone by now. The server's own come first.
    fn leave(&mut self, server: &str, held: bool, size: Size) -> Vec<Owner> {
        if let Some(seats) = self.servers.get_mut(server) {
            seats.taken -= 1;
            seats.held -= usize::from(held);
        }
        let (own, others): (Vec<_>, Vec<_>) = self.servers.keys().cloned().partition(|name| name == server);
        let mut called = Vec::new();
        for name in own.into_iter().chain(others) {
            let room = self.room(&name, size);
            let Some(seats) = self.servers.get_mut(&name) else { continue };
            let next: Vec<_> = seats.order.drain(..room.min(seats.order.len())).collect();
            for owner in &next {
                seats.waiting.remove(owner);
            }
            // They are not there yet; the others find no room where they will be.
            seats.taken += next.len();
            called.push((name, next));
        }
        for (name, next) in &called {
            if let Some(seats) = self.servers.get_mut(name) {
                seats.taken -= next.len();
            }
        }
        self.servers.retain(|_, seats| seats.taken > 0 || !seats.order.is_empty());
        called.into_iter().flat_map(|(_, next)| next).collect()
    }
}

impl Bulkheads {
    fn lock(&self) -> MutexGuard<'_, HashMap<Discriminant<Owner>, Hall>> {
        self.halls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat stays empty for a while.
    fn hold(&self, queue: &Discriminant<Owner>, server: &str) {
        if let Some(seats) = self.lock().get_mut(queue).and_then(|hall| hall.servers.get_mut(server)) {
            seats.held += 1;
        }
    }

    /// How many reconciles are at work on a server.
    pub(super) fn taken(&self, server: &str) -> usize {
        let taken = |seats: &Seats| seats.taken - seats.held;
        self.lock().values().filter_map(|hall| hall.servers.get(server).map(taken)).sum()
    }
}

/// A reconcile's right to be at work on a server; given back when dropped.
pub(super) struct Seat {
    world: Arc<World>,
    queue: Discriminant<Owner>,
    server: String,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let (world, queue, server) = (Arc::clone(&self.world), self.queue, std::mem::take(&mut self.server));
        let away = world.databases.get(&server).is_some_and(|connected| connected.server.statistics().away);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if away => {
                world.bulkheads.hold(&queue, &server);
                runtime.spawn(async move {
                    tokio::time::sleep(HELD).await;
                    world.leave(&queue, &server, true);
                });
            }
            // Nothing runs any more that could wait.
            _ => world.leave(&queue, &server, false),
        }
    }
}

impl World {
    /// Leave for the reconcile of `owner` to work on a server, or nothing: then it is to end and
    /// is called again.
    pub(super) fn seat(self: &Arc<Self>, server: &str, owner: &Owner) -> Option<Seat> {
        let queue = discriminant(owner);
        let size = self.size(&queue);
        let entered = self.bulkheads.lock().entry(queue).or_default().enter(server, owner, size);
        entered.then(|| Seat { world: Arc::clone(self), queue, server: server.to_owned() })
    }

    fn leave(self: &Arc<Self>, queue: &Discriminant<Owner>, server: &str, held: bool) {
        let size = self.size(queue);
        let mut halls = self.bulkheads.lock();
        let next = halls.get_mut(queue).map(|hall| hall.leave(server, held, size));
        drop(halls);
        for owner in next.into_iter().flatten() {
            push_owner(self, &owner);
        }
    }

    /// How many reconciles of tenants may be at work on one server.
    pub(super) fn tenant_seats(&self) -> usize {
        self.size(&discriminant(&Owner::Tenant(String::new()))).most()
    }

    fn size(&self, queue: &Discriminant<Owner>) -> Size {
        let pools = discriminant(&Owner::Pool(String::new()));
        let seats = usize::from(if *queue == pools { super::FEW } else { self.args.concurrency });
        Size { seats, servers: self.stores.servers.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two seats on the one server there is.
    const SMALL: Size = Size { seats: 2, servers: 1 };

    fn owner(name: &str) -> Owner {
        Owner::Tenant(name.to_owned())
    }

    /// Sends as many as there may be to a server; how many that are.
    fn fill(hall: &mut Hall, server: &str, size: Size) -> usize {
        (0..100).filter(|number| hall.enter(server, &owner(&format!("{server}-{number}")), size)).count()
    }

    #[test]
    fn who_finds_no_seat_is_called_in_its_turn() {
        let mut hall = Hall::default();
        assert!(hall.enter("s", &owner("a"), SMALL) && hall.enter("s", &owner("b"), SMALL));
        assert!(["c", "d", "c", "e"].iter().all(|name| !hall.enter("s", &owner(name), SMALL)));
        assert_eq!(hall.leave("s", false, SMALL), [owner("c")]);
        assert!(hall.enter("s", &owner("c"), SMALL));
        assert_eq!(
            (hall.leave("s", false, SMALL), hall.leave("s", false, SMALL)),
            (vec![owner("d")], vec![owner("e")])
        );
        assert!(hall.servers.is_empty());
    }

    #[test]
    fn one_that_is_gone_keeps_nobody_waiting() {
        let mut hall = Hall::default();
        assert!(hall.enter("s", &owner("a"), SMALL) && hall.enter("s", &owner("b"), SMALL));
        assert!(["gone", "c"].iter().all(|name| !hall.enter("s", &owner(name), SMALL)));
        assert_eq!(hall.leave("s", false, SMALL), [owner("gone")], "it is not there any more, and takes no seat");
        assert_eq!(hall.leave("s", false, SMALL), [owner("c")]);
    }

    #[test]
    fn one_that_comes_by_itself_is_not_called_again() {
        let size = Size { seats: 1, servers: 1 };
        let mut hall = Hall::default();
        assert!(hall.enter("s", &owner("a"), size));
        assert!(!hall.enter("s", &owner("b"), size) && !hall.enter("s", &owner("c"), size));
        assert_eq!(hall.leave("s", false, size), [owner("b")]);
        assert!(hall.enter("s", &owner("c"), size), "before b came");
        assert!(hall.leave("s", false, size).is_empty());
    }

    #[test]
    fn servers_that_stand_still_leave_a_share_to_each_other_one() {
        for (seats, servers) in [(32, 2), (32, 3), (16, 4), (32, 10), (2, 2)] {
            let size = Size { seats, servers };
            let mut hall = Hall::default();
            let mut taken = 0;
            for number in 1..servers {
                let held = fill(&mut hall, &format!("frozen-{number}"), size);
                assert!(held <= seats / 2, "{held} of {seats} on one of {servers}");
                taken += held;
            }
            let left = fill(&mut hall, "lively", size);
            assert!(left >= (seats / 2 / servers).max(1), "{left} of {seats} with {servers}");
            assert!(taken + left <= seats, "no more than there are");
        }
        // The lively one alone is not held back by shares that nobody uses.
        let mut hall = Hall::default();
        assert_eq!(fill(&mut hall, "lively", Size { seats: 32, servers: 3 }), 16);
    }

    #[test]
    fn a_seat_that_is_given_back_is_free_for_another_server_too() {
        let size = Size { seats: 8, servers: 3 };
        let mut hall = Hall::default();
        assert_eq!((fill(&mut hall, "a", size), fill(&mut hall, "b", size)), (4, 3), "one is kept for the third");
        assert_eq!(hall.leave("a", false, size), [owner("a-4")], "its own come first");
        assert!(hall.enter("a", &owner("a-4"), size));
        hall.servers.get_mut("a").expect("a's seats").order.clear();
        assert_eq!(hall.leave("a", false, size), [owner("b-3")]);
    }

    #[test]
    fn a_seat_that_is_held_back_is_taken_and_nobody_is_at_work_on_it() {
        let bulkheads = Bulkheads::default();
        let queue = discriminant(&owner("a"));
        assert!(bulkheads.lock().entry(queue).or_default().enter("s", &owner("a"), SMALL));
        bulkheads.hold(&queue, "s");
        assert_eq!(bulkheads.taken("s"), 0);
        let mut halls = bulkheads.lock();
        let hall = halls.get_mut(&queue).expect("the hall");
        assert!(hall.enter("s", &owner("b"), SMALL) && !hall.enter("s", &owner("c"), SMALL), "two seats");
        assert_eq!(hall.leave("s", true, SMALL), [owner("c")], "called when the time is over");
    }
}
