//! Keeps one database server's trouble from taking the reconciles of all others: while there
//! is more than one server, at most half of those that may run at a time are at work on one.
//!
//! Who finds no seat is not made to wait inside a reconcile, which would take the place that is
//! to be kept free: it is put on the server's list and looked at again when a seat is free.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{namespaces::push_owner, world::World};
use crate::cluster::Owner;

/// After how long an object without a seat is looked at in any case, should all who have one
/// end without a word.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(15);

/// A server, and whose reconciles: tenants and pools have queues of their own.
type Compartment = (String, std::mem::Discriminant<Owner>);

/// Who is at work on which server.
#[derive(Default)]
pub(super) struct Bulkheads {
    compartments: Mutex<HashMap<Compartment, Seats>>,
}

#[derive(Default)]
struct Seats {
    taken: usize,
    /// Those that wait, in their order; once each.
    order: VecDeque<Owner>,
    waiting: BTreeSet<Owner>,
}

impl Seats {
    fn enter(&mut self, owner: &Owner, seats: usize) -> bool {
        if self.taken >= seats {
            if self.waiting.insert(owner.clone()) {
                self.order.push_back(owner.clone());
            }
            return false;
        }
        if self.waiting.remove(owner) {
            self.order.retain(|other| other != owner);
        }
        self.taken += 1;
        true
    }

    /// Gives a seat back; those that are to be looked at are as many as there are free seats,
    /// since the first of them may be gone by now.
    fn leave(&mut self, seats: usize) -> Vec<Owner> {
        self.taken -= 1;
        let free = seats.saturating_sub(self.taken).min(self.order.len());
        let next: Vec<_> = self.order.drain(..free).collect();
        for owner in &next {
            self.waiting.remove(owner);
        }
        next
    }
}

impl Bulkheads {
    fn lock(&self) -> MutexGuard<'_, HashMap<Compartment, Seats>> {
        self.compartments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many reconciles are at work on a server.
    pub(super) fn taken(&self, server: &str) -> usize {
        self.lock().iter().filter(|((name, _), _)| name == server).map(|(_, seats)| seats.taken).sum()
    }
}

/// A reconcile's right to be at work on a server; given back when dropped.
pub(super) struct Seat {
    world: Arc<World>,
    compartment: Compartment,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut all = self.world.bulkheads.lock();
        let Some(seats) = all.get_mut(&self.compartment) else { return };
        let next = seats.leave(self.world.seats(&self.compartment.1));
        if seats.taken == 0 && seats.order.is_empty() {
            all.remove(&self.compartment);
        }
        drop(all);
        for owner in next {
            push_owner(&self.world, &owner);
        }
    }
}

impl World {
    /// Leave for the reconcile of `owner` to work on a server, or nothing: then it is to end and
    /// is called again.
    pub(super) fn seat(self: &Arc<Self>, server: &str, owner: &Owner) -> Option<Seat> {
        let compartment = (server.to_owned(), std::mem::discriminant(owner));
        let seats = self.seats(&compartment.1);
        let entered = self.bulkheads.lock().entry(compartment.clone()).or_default().enter(owner, seats);
        entered.then(|| Seat { world: Arc::clone(self), compartment })
    }

    /// How many reconciles of tenants may be at work on one server.
    pub(super) fn tenant_seats(&self) -> usize {
        self.seats(&std::mem::discriminant(&Owner::Tenant(String::new())))
    }

    fn seats(&self, queue: &std::mem::Discriminant<Owner>) -> usize {
        let pools = std::mem::discriminant(&Owner::Pool(String::new()));
        let all = usize::from(if *queue == pools { super::FEW } else { self.args.concurrency });
        // With one server there is nobody to be kept free for.
        if self.stores.servers.len() > 1 { (all / 2).max(1) } else { all }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: &str) -> Owner {
        Owner::Tenant(name.to_owned())
    }

    #[test]
    fn who_finds_no_seat_is_called_in_its_turn() {
        let mut seats = Seats::default();
        assert!(seats.enter(&owner("a"), 2) && seats.enter(&owner("b"), 2));
        assert!(["c", "d", "c", "e"].iter().all(|name| !seats.enter(&owner(name), 2)));
        assert_eq!(seats.leave(2), [owner("c")]);
        assert!(seats.enter(&owner("c"), 2));
        assert_eq!((seats.leave(2), seats.leave(2)), (vec![owner("d")], vec![owner("e")]));
        assert_eq!((seats.taken, seats.order.len(), seats.waiting.len()), (0, 0, 0));
    }

    #[test]
    fn one_that_is_gone_keeps_nobody_waiting() {
        let mut seats = Seats::default();
        assert!(seats.enter(&owner("a"), 2));
        assert!(seats.enter(&owner("b"), 2));
        assert!(["gone", "c"].iter().all(|name| !seats.enter(&owner(name), 2)));
        assert_eq!(seats.leave(2), [owner("gone")], "it is not there any more, and takes no seat");
        assert_eq!(seats.leave(2), [owner("c")]);
    }

    #[test]
    fn one_that_comes_by_itself_is_not_called_again() {
        let mut seats = Seats::default();
        assert!(seats.enter(&owner("a"), 1));
        assert!(!seats.enter(&owner("b"), 1) && !seats.enter(&owner("c"), 1));
        assert_eq!(seats.leave(1), [owner("b")]);
        assert!(seats.enter(&owner("c"), 1), "before b came");
        assert!(seats.leave(1).is_empty());
    }
}
