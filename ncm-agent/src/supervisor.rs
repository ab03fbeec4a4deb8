//! What a service supervisor is told: how far the agent is, and that it still works (sd_notify(3), sd_watchdog_enabled(3)).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Everything that is programmed is as it should be, and goal states are taken.
pub(crate) const READY: &str = "READY=1";

/// The agent is about to end.
pub(crate) const STOPPING: &str = "STOPPING=1";

/// The work goes on.
pub(crate) const ALIVE: &str = "WATCHDOG=1";

/// Tells the supervisor something; nothing happens where there is none.
pub(crate) fn notify(state: &str) {
    let Some(target) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&target, state) {
        tracing::warn!(%error, state, "cannot tell the service supervisor");
    }
}

fn send(target: &OsStr, state: &str) -> io::Result<()> {
    let address = match target.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(target),
    };
    // A supervisor that does not read must not keep the work waiting.
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address?).map(drop)
}

/// How often the supervisor is to be told that the work goes on, if it wants that: twice in the time after which it would end the
/// process.
pub(crate) fn watchdog_period() -> Option<Duration> {
    let variable = |name| std::env::var(name).ok();
    period(variable("WATCHDOG_USEC").as_deref(), variable("WATCHDOG_PID").as_deref(), std::process::id())
}

fn period(microseconds: Option<&str>, process: Option<&str>, own: u32) -> Option<Duration> {
    // Meant for another process: a child of it has inherited the variables.
    if process.is_some_and(|process| process.parse() != Ok(own)) {
        return None;
    }
    let microseconds: u64 = microseconds?.parse().ok()?;
    (microseconds > 0).then(|| Duration::from_micros(microseconds / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_fed_twice_in_its_time_and_only_if_it_is_meant_for_us() {
        let half = Some(Duration::from_secs(15));
        assert_eq!(period(Some("30000000"), None, 7), half);
        assert_eq!(period(Some("30000000"), Some("7"), 7), half);
        assert_eq!(period(Some("30000000"), Some("8"), 7), None);
        assert_eq!(period(Some("0"), None, 7), None);
        assert_eq!(period(Some("soon"), None, 7), None);
        assert_eq!(period(None, None, 7), None);
    }
}
