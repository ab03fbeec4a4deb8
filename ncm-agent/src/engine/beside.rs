//! A second thread that writes one table while the writer writes another: the two tables of endpoints do not refer to
//! each other, and a large message is little else.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};

use ncm_common::Plain;
use ncm_dataplane::Table;
use ncm_model::Delta;

use super::writer::{Refused, put};
use crate::fault;

/// Fewer entries are not worth waking a thread.
const WORTH: usize = 1024;

/// What was asked for, what of it was refused, and which deletions of it.
type Done<K, V> = (Delta<K, V>, Refused, Vec<K>);

/// The thread's other end.
pub(super) struct Beside<K, V> {
    table: Table<K, V>,
    jobs: Sender<Delta<K, V>>,
    done: Receiver<Done<K, V>>,
}

impl<K: Plain, V: Plain> Beside<K, V> {
    /// Starts the thread; it ends with what is returned here.
    pub(super) fn start(table: &Table<K, V>) -> io::Result<Self>
    where
        K: Send + 'static,
        V: Send + 'static,
    {
        let (jobs, asked) = channel();
        let (answer, done) = channel();
        let own = table.clone();
        fault::supervise_thread("ncm-writer-2", "the second writer of table entries", move || {
            for delta in asked {
                if answer.send(write(&own, delta)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { table: table.clone(), jobs, done })
    }

    /// Writes the additions of `delta` while `meanwhile` runs.
    pub(super) fn put(
        &self,
        delta: &mut Delta<K, V>,
        refused: &mut Refused,
        undeleted: &mut Vec<K>,
        meanwhile: impl FnOnce(&mut Refused),
    ) {
        if delta.put.len() < WORTH {
            put(&self.table, delta, refused, undeleted);
            return meanwhile(refused);
        }
        let asked = self.jobs.send(std::mem::take(delta)).is_ok();
        meanwhile(refused);
        let Some((written, also_refused, also_undeleted)) = self.done.recv().ok().filter(|_| asked) else {
            // It ends only by a fault of its own.
            fault::end("the second writer of table entries");
        };
        *delta = written;
        refused.extend(also_refused);
        undeleted.extend(also_undeleted);
    }
}

fn write<K: Plain, V: Plain>(table: &Table<K, V>, mut delta: Delta<K, V>) -> Done<K, V> {
    let (mut refused, mut undeleted) = (Refused::new(), Vec::new());
    put(table, &mut delta, &mut refused, &mut undeleted);
    (delta, refused, undeleted)
}
