//! What a fault of the agent's own does: it ends the process. Without one of its tasks an agent would look alive and do
//! less than it says, while the next process goes on from the tables.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use futures::FutureExt;
use tokio::task::JoinHandle;

/// An error with its causes, each said once: many name their cause themselves.
#[must_use]
pub fn explained(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// The exit code of a process that a fault of its own ends (`EX_SOFTWARE` of sysexits.h).
const EXIT_FAULT: i32 = 70;

/// Ends the process.
pub(crate) fn end(what: &str) -> ! {
    tracing::error!("{what} has failed: the agent ends, to be started again");
    std::process::exit(EXIT_FAULT);
}

/// Runs a task; a panic in it ends the process.
pub(crate) fn supervise(
    what: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        if AssertUnwindSafe(task).catch_unwind().await.is_err() {
            end(what);
        }
    })
}

/// Runs a thread; a panic in it ends the process.
pub(crate) fn supervise_thread(
    name: &str,
    what: &'static str,
    run: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let thread = thread::Builder::new().name(name.to_owned());
    thread.spawn(move || {
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            end(what);
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    const VARIABLE: &str = "NCM_TEST_PANICS";

    /// Runs one test of this module again, as a process of its own in which it is to panic.
    fn expect_fault(test: &str) {
        let this = std::env::current_exe().expect("has a path");
        let name = format!("fault::tests::{test}");
        let child = Command::new(this).args(["--exact", &name]).env(VARIABLE, "1").output();
        assert_eq!(child.expect("can be run").status.code(), Some(EXIT_FAULT));
    }

    #[test]
    fn each_cause_is_said_once() {
        let error = crate::store::StoreError::Io {
            directory: "/var/lib/ncm".into(),
            action: "open it".into(),
            source: io::Error::other("no such thing"),
        };
        let text = explained(&anyhow::Error::new(error).context("cannot start"));
        assert!(text.starts_with("cannot start: the journal in /var/lib/ncm"), "{text}");
        assert_eq!(text.matches("no such thing").count(), 1, "{text}");
        let plain = anyhow::Error::msg("one").context("two");
        assert_eq!(explained(&plain), "two: one");
    }

    #[tokio::test]
    async fn a_panic_in_a_task_ends_the_process() {
        if std::env::var_os(VARIABLE).is_none() {
            return expect_fault("a_panic_in_a_task_ends_the_process");
        }
        supervise("a task that ends", async {}).await.expect("it ends well");
        supervise("a task that panics", async { panic!("on purpose") });
        tokio::time::sleep(Duration::from_secs(20)).await;
    }

    #[test]
    fn a_panic_in_a_thread_ends_the_process() {
        if std::env::var_os(VARIABLE).is_none() {
            return expect_fault("a_panic_in_a_thread_ends_the_process");
        }
        supervise_thread("ends", "a thread that ends", || {}).expect("can be started");
        supervise_thread("panics", "a thread that panics", || panic!("on purpose")).expect("can be started");
        thread::sleep(Duration::from_secs(20));
    }
}
