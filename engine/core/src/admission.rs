//! The queue before the scheduler: first in, first out, and never longer than its limit.

use std::collections::VecDeque;

/// The queue is at its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{waiting} requests are waiting, which is the limit")]
pub struct QueueFull {
    /// Requests in the queue.
    pub waiting: usize,
}

/// A bounded queue.
#[derive(Debug)]
pub struct AdmissionQueue<T> {
    waiting: VecDeque<T>,
    limit: usize,
}

impl<T> AdmissionQueue<T> {
    /// An empty queue that holds at most `limit` requests.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { waiting: VecDeque::new(), limit }
    }

    /// Adds a request at the end.
    ///
    /// # Errors
    /// The queue is at its limit.
    pub fn push(&mut self, request: T) -> Result<(), QueueFull> {
        if self.waiting.len() >= self.limit {
            return Err(QueueFull { waiting: self.waiting.len() });
        }
        self.waiting.push_back(request);
        Ok(())
    }

    /// Takes the oldest request.
    pub fn pop(&mut self) -> Option<T> {
        self.waiting.pop_front()
    }

    /// Drops the requests that nobody waits for any more.
    pub fn retain(&mut self, wanted: impl FnMut(&T) -> bool) {
        self.waiting.retain(wanted);
    }

    /// Requests in the queue.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_leave_in_the_order_they_came_and_the_limit_holds() {
        let mut queue = AdmissionQueue::new(2);
        assert_eq!((queue.push(1), queue.push(2)), (Ok(()), Ok(())));
        assert_eq!(queue.push(3), Err(QueueFull { waiting: 2 }));
        assert_eq!(queue.pop(), Some(1));
        assert_eq!(queue.push(3), Ok(()));
        queue.retain(|request| *request != 2);
        assert_eq!((queue.pop(), queue.pop(), queue.is_empty()), (Some(3), None, true));
    }
}
