//! How much of one caller may be under way, so that none takes all the room.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

/// What a caller has under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) requests: usize,
    /// Bytes of bodies.
    pub(super) bytes: usize,
    pub(super) events: usize,
}

impl Load {
    fn plus(self, more: Self) -> Self {
        Self {
            requests: self.requests + more.requests,
            bytes: self.bytes + more.bytes,
            events: self.events + more.events,
        }
    }

    fn minus(self, less: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(less.requests),
            bytes: self.bytes.saturating_sub(less.bytes),
            events: self.events.saturating_sub(less.events),
        }
    }

    fn fits(self, most: Self) -> bool {
        self.requests <= most.requests && self.bytes <= most.bytes && self.events <= most.events
    }
}

/// What all callers have under way. Knows only those that have anything.
pub(super) struct Shares<C> {
    most: Load,
    callers: Mutex<HashMap<C, Load>>,
}

/// A part of a caller's share; given back when it is dropped.
pub(super) struct Share<C: Clone + Eq + Hash> {
    shares: Arc<Shares<C>>,
    caller: C,
    load: Load,
}

impl<C: Clone + Eq + Hash> Shares<C> {
    /// Each caller may have so much.
    pub(super) fn new(most: Load) -> Arc<Self> {
        Arc::new(Self { most, callers: Mutex::default() })
    }

    /// Takes a part of a caller's share; nothing where that would be too much.
    pub(super) fn take(self: &Arc<Self>, caller: &C, load: Load) -> Option<Share<C>> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = callers.get(caller).copied().unwrap_or_default().plus(load);
        if !taken.fits(self.most) {
            return None;
        }
        callers.insert(caller.clone(), taken);
        Some(Share { shares: Arc::clone(self), caller: caller.clone(), load })
    }
}

impl<C: Clone + Eq + Hash> Drop for Share<C> {
    fn drop(&mut self) {
        let mut callers = self.shares.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut entry) = callers.entry(self.caller.clone()) {
            let left = entry.get().minus(self.load);
            if left == Load::default() {
                entry.remove();
            } else {
                entry.insert(left);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(requests: usize, bytes: usize, events: usize) -> Load {
        Load { requests, bytes, events }
    }

    #[test]
    fn each_caller_has_its_own_share_and_gives_it_back() {
        let shares = Shares::new(load(2, 100, 10));
        let one = shares.take(&"a", load(1, 60, 0)).expect("room");
        assert!(shares.take(&"a", load(1, 60, 0)).is_none(), "too many bytes");
        assert!(shares.take(&"b", load(1, 60, 0)).is_some(), "another's share");
        let events = shares.take(&"a", load(0, 0, 10)).expect("room");
        assert!(shares.take(&"a", load(0, 0, 1)).is_none(), "too many events");
        let two = shares.take(&"a", load(1, 40, 0)).expect("room");
        assert!(shares.take(&"a", load(1, 0, 0)).is_none(), "too many requests");
        drop((one, two));
        assert!(shares.take(&"a", load(2, 100, 0)).is_some());
        drop(events);
        assert!(shares.callers.lock().expect("a lock").is_empty(), "nobody is remembered who has nothing under way");
    }
}
