//! What the programs log comes out as events, and nothing when it is off.

mod common;

use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex};

use common::{isolate, small};
use ncm_dataplane::{Dataplane, Hook, LogLevel, Options, TestRun};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Keeps every event as a line: level, then fields.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Subscriber for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        struct Line(String);
        impl Visit for Line {
            fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
                write!(self.0, " {field}={value:?}").expect("a string takes it");
            }
        }
        let mut line = Line(format!("{} {}", event.metadata().level(), event.metadata().target()));
        event.record(&mut line);
        self.0.lock().expect("not poisoned").push(line.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Drops a frame (the loopback interface is no port's) and gives what was logged about it.
fn lines(level: LogLevel) -> Option<Vec<String>> {
    isolate();
    let dataplane =
        Dataplane::open(&Options { log: level, ..small(Options::unpinned()) }).expect("the object loads");
    let run = TestRun::new([&[2; 12][..], &[8, 0], &[0x45; 46]].concat(), 0);
    let dropped = dataplane.test_run(Hook::GuestTc, &run).expect("it runs");
    assert_eq!(dropped.action, 2, "TC_ACT_SHOT");
    let mut log = dataplane.take_log()?;
    assert!(dataplane.take_log().is_none(), "there is one reader");
    let lines = Lines::default();
    tracing::subscriber::with_default(lines.clone(), || log.forward());
    let lines = lines.0.lock().expect("not poisoned").clone();
    Some(lines)
}

#[test]
fn a_drop_is_logged_with_its_reason() {
    let lines = lines(LogLevel::Debug).expect("there is a log");
    let [line] = &lines[..] else { panic!("one line expected: {lines:?}") };
    assert!(line.starts_with("DEBUG ncm::program "), "{line}");
    assert!(line.contains("reason 1"), "{line}");
}

#[test]
fn a_higher_level_leaves_it_out() {
    assert_eq!(lines(LogLevel::Warn), Some(Vec::new()));
}

#[test]
fn without_a_level_there_is_no_log() {
    assert_eq!(lines(LogLevel::Off), None);
}
