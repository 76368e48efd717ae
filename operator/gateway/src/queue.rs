//! Who may send next where a model's engines have all that they can compute: the keys take turns.
//!
//! Engines queue too, first come first served; a gateway that hands them little more than they can compute at once
//! keeps one caller with a thousand requests from standing before everybody else's first.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::pace::Pace;

/// The queue of one model.
#[derive(Debug, Default)]
pub struct FairQueue {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    capacity: Option<usize>,
    running: usize,
    queued: usize,
    /// Who waits, by key and then in the order of their numbers.
    waiting: BTreeMap<String, BTreeMap<u64, oneshot::Sender<Place>>>,
    /// Keys that wait, the next one first.
    turns: VecDeque<String>,
    /// Number of the next one that waits.
    next_number: u64,
    pace: Pace,
}

/// More requests wait already than may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full {
    /// Requests that wait.
    pub queued: usize,
    /// In which time they have had their turn.
    pub served_in: Duration,
}

/// A request's place among those that run; given on when dropped.
#[derive(Debug)]
pub struct Place {
    queue: Arc<FairQueue>,
}

impl Drop for Place {
    fn drop(&mut self) {
        {
            let mut state = self.queue.lock();
            state.running -= 1;
            if state.queued > 0 {
                state.pace.came_back(Instant::now());
            }
        }
        self.queue.admit();
    }
}

impl FairQueue {
    /// Sets how many requests may run at once; `None` is without limit.
    pub fn set_capacity(self: &Arc<Self>, capacity: Option<usize>) {
        let changed = std::mem::replace(&mut self.lock().capacity, capacity) != capacity;
        if changed {
            self.admit();
        }
    }

    /// Requests that wait.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.lock().queued
    }

    /// Waits for a place.
    ///
    /// # Errors
    ///
    /// `most` requests wait already.
    pub async fn enter(self: &Arc<Self>, key: &str, most: usize) -> Result<Place, Full> {
        let (turn, _waits) = {
            let mut state = self.lock();
            if state.has_room() && state.queued == 0 {
                state.running += 1;
                return Ok(Place { queue: Arc::clone(self) });
            }
            if state.queued >= most {
                return Err(state.full());
            }
            if state.queued == 0 {
                state.pace.begin(Instant::now());
            }
            let (sender, turn) = oneshot::channel();
            let number = state.next_number;
            state.next_number += 1;
            state.queued += 1;
            if !state.waiting.contains_key(key) {
                state.turns.push_back(key.to_owned());
            }
            state.waiting.entry(key.to_owned()).or_default().insert(number, sender);
            (turn, Waits { queue: self, key, number })
        };
        // The sender is dropped with the queue only, and this holds the queue.
        turn.await.map_err(|_| self.lock().full())
    }

    /// Lets in whoever has a place now.
    fn admit(self: &Arc<Self>) {
        loop {
            let next = {
                let mut state = self.lock();
                if !state.has_room() {
                    return;
                }
                let Some(next) = state.next() else { return };
                state.running += 1;
                next
            };
            // Not under the lock: a place whose request ends at this very moment is given back at once.
            let _ = next.send(Place { queue: Arc::clone(self) });
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn full(&self) -> Full {
        Full { queued: self.queued, served_in: self.pace.until_served(self.queued, Instant::now()) }
    }

    fn has_room(&self) -> bool {
        self.capacity.is_none_or(|capacity| self.running < capacity)
    }

    fn next(&mut self) -> Option<oneshot::Sender<Place>> {
        let key = self.turns.pop_front()?;
        let of_key = self.waiting.get_mut(&key)?;
        let next = of_key.pop_first();
        if of_key.is_empty() {
            self.waiting.remove(&key);
        } else {
            self.turns.push_back(key);
        }
        self.queued -= 1;
        next.map(|(_, sender)| sender)
    }

    fn leave(&mut self, key: &str, number: u64) {
        let Some(of_key) = self.waiting.get_mut(key) else { return };
        if of_key.remove(&number).is_none() {
            return;
        }
        self.queued -= 1;
        if of_key.is_empty() {
            self.waiting.remove(key);
            self.turns.retain(|turn| turn != key);
        }
    }
}

/// A request that waits: once it is dropped, nobody waits behind it in vain.
struct Waits<'w> {
    queue: &'w FairQueue,
    key: &'w str,
    number: u64,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.queue.lock().leave(self.key, self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, future::join_all};

    use super::*;

    #[tokio::test]
    async fn keys_take_turns_whoever_came_first() {
        let queue = Arc::new(FairQueue::default());
        queue.set_capacity(Some(1));
        let first = queue.enter("a", 10).await.unwrap();
        let order = Mutex::new(Vec::new());
        let wait = async |key: &str| {
            let place = queue.enter(key, 10).await.unwrap();
            order.lock().unwrap().push(key.to_owned());
            drop(place);
        };
        let all = join_all(["a", "a", "a", "b", "c", "b"].map(wait));
        let release = async { drop(first) };
        tokio::join!(all, release);
        assert_eq!(*order.lock().unwrap(), ["a", "b", "c", "a", "b", "a"]);
        assert_eq!((queue.queued(), queue.lock().running), (0, 0));
    }

    #[tokio::test]
    async fn a_full_queue_says_so_at_once_and_one_without_limit_never() {
        let queue = Arc::new(FairQueue::default());
        let places = join_all((0..100).map(|_| queue.enter("a", 0))).await;
        assert!(places.iter().all(Result::is_ok));
        queue.set_capacity(Some(2));
        assert_eq!(queue.enter("a", 0).await.unwrap_err().queued, 0);
    }

    #[tokio::test]
    async fn a_client_that_goes_away_gives_its_place_on() {
        let queue = Arc::new(FairQueue::default());
        queue.set_capacity(Some(1));
        let first = queue.enter("a", 10).await.unwrap();
        let mut gone = Box::pin(queue.enter("a", 10));
        assert!((&mut gone).now_or_never().is_none());
        let mut waits = Box::pin(queue.enter("b", 10));
        assert!((&mut waits).now_or_never().is_none());
        drop(gone);
        drop(first);
        assert!(waits.now_or_never().is_some_and(|place| place.is_ok()));
        assert_eq!(queue.lock().running, 0);
    }

    #[tokio::test]
    async fn clients_that_went_away_take_nobodys_room_in_the_queue() {
        let queue = Arc::new(FairQueue::default());
        queue.set_capacity(Some(1));
        let first = queue.enter("a", 0).await.unwrap();
        // As many as a queue may hold: ending them one within the other would use up the stack.
        let most = 1 << 16;
        let mut gone: Vec<_> = (0..most).map(|at| Box::pin(queue.enter(["a", "b"][at % 2], most))).collect();
        for waits in &mut gone {
            assert!(waits.now_or_never().is_none());
        }
        assert!(queue.enter("c", most).now_or_never().is_some_and(|full| full.is_err()));
        drop(gone);
        assert_eq!((queue.queued(), queue.lock().turns.len()), (0, 0));
        let mut waits = Box::pin(queue.enter("c", 1));
        assert!((&mut waits).now_or_never().is_none(), "there is room for one");
        drop(first);
        assert!(waits.now_or_never().is_some_and(|place| place.is_ok()));
        assert_eq!(queue.lock().running, 0);
    }

    #[tokio::test]
    async fn capacity_that_grows_lets_more_in() {
        let queue = Arc::new(FairQueue::default());
        queue.set_capacity(Some(0));
        let mut waits = Box::pin(queue.enter("a", 1));
        assert!((&mut waits).now_or_never().is_none());
        queue.set_capacity(Some(1));
        assert!(waits.now_or_never().is_some());
    }
}
