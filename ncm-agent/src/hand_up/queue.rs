//! Questions that wait for their answer: a bounded number for each port, and ports take turns, so that a guest that asks much
//! waits for itself only.

use std::collections::{HashMap, VecDeque};

/// Most questions of one port that wait.
const PER_PORT: usize = 8;
/// Most questions that wait in all.
const IN_ALL: usize = 4_096;

/// Questions by port, in turns.
#[derive(Debug)]
pub(super) struct Queue<T> {
    ports: HashMap<u32, VecDeque<T>>,
    turns: VecDeque<u32>,
    waiting: usize,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { ports: HashMap::new(), turns: VecDeque::new(), waiting: 0 }
    }
}

impl<T> Queue<T> {
    /// Adds a port's question; says whether there was room.
    pub(super) fn push(&mut self, port: u32, question: T) -> bool {
        if self.waiting == IN_ALL {
            return false;
        }
        let waiting = self.ports.entry(port).or_default();
        if waiting.len() == PER_PORT {
            return false;
        }
        if waiting.is_empty() {
            self.turns.push_back(port);
        }
        waiting.push_back(question);
        self.waiting += 1;
        true
    }

    /// Nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// The next question, of the port whose turn it is.
    pub(super) fn pop(&mut self) -> Option<(u32, T)> {
        let port = self.turns.pop_front()?;
        let waiting = self.ports.get_mut(&port)?;
        let question = waiting.pop_front()?;
        self.waiting -= 1;
        if waiting.is_empty() {
            self.ports.remove(&port);
        } else {
            self.turns.push_back(port);
        }
        Some((port, question))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_take_turns_and_a_flood_has_no_room() {
        let mut queue = Queue::default();
        let taken = (0..100).filter(|number| queue.push(1, *number)).count();
        assert_eq!(taken, PER_PORT);
        assert!(queue.push(2, 7), "another port has room all the same");
        let order: Vec<u32> = std::iter::from_fn(|| queue.pop()).map(|(port, _)| port).collect();
        assert_eq!(order[..3], [1, 2, 1]);
        assert_eq!(order.len(), PER_PORT + 1);
        assert!(queue.ports.is_empty() && queue.turns.is_empty() && queue.waiting == 0);
    }

    #[test]
    fn what_waits_is_bounded_in_all() {
        let mut queue = Queue::default();
        let taken = (0..10_000).filter(|port| queue.push(*port, ())).count();
        assert_eq!(taken, IN_ALL);
    }
}
