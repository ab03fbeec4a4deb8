//! What a fault of the agent's own does: it ends the process. Without one of its tasks an agent would look alive and do
//! less than it says, while the next process goes on from the tables.

use std::panic::AssertUnwindSafe;

use futures::FutureExt;

/// The exit code of a process that a fault of its own ends (`EX_SOFTWARE` of sysexits.h).
const EXIT_FAULT: i32 = 70;

/// Ends the process.
pub(super) fn end(what: &str) -> ! {
    tracing::error!("{what} has failed: the agent ends, to be started again");
    std::process::exit(EXIT_FAULT);
}

/// Runs a task; a panic in it ends the process.
pub(super) fn supervise(what: &'static str, task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(async move {
        if AssertUnwindSafe(task).catch_unwind().await.is_err() {
            end(what);
        }
    });
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    const VARIABLE: &str = "NCM_TEST_TASK_PANICS";

    #[tokio::test]
    async fn a_panic_in_a_task_ends_the_process() {
        if std::env::var_os(VARIABLE).is_some() {
            supervise("a task that ends", async {});
            tokio::task::yield_now().await;
            supervise("a task that panics", async { panic!("on purpose") });
            tokio::time::sleep(Duration::from_secs(20)).await;
            return;
        }
        let name = "engine::fault::tests::a_panic_in_a_task_ends_the_process";
        let this = std::env::current_exe().expect("has a path");
        let child = Command::new(this).args(["--exact", name]).env(VARIABLE, "1").output();
        assert_eq!(child.expect("can be run").status.code(), Some(EXIT_FAULT));
    }
}
