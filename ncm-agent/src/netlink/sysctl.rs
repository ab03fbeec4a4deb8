//! Settings of the kernel that keep a guest from the host's own stack, in the network namespace of the calling thread.
//! They matter where no program is attached yet, or no more: a frame that passes is then neither answered nor
//! forwarded.

use std::io;
use std::path::{Path, PathBuf};

use super::{Kernel, Link, NetlinkError};

const ROOT: &str = "/proc/sys/net";
/// Answer no ARP request at all.
const NO_ARP_ANSWERS: &str = "8";

/// A setting could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot set {path} to {value}: {error}")]
pub struct SysctlError {
    path: PathBuf,
    value: &'static str,
    #[source]
    error: io::Error,
}

/// (path below the family's `conf/<interface>`, value) of a closed interface.
const CLOSED: [(&str, &str, &str); 4] = [
    ("ipv6", "disable_ipv6", "1"),
    ("ipv4", "arp_ignore", NO_ARP_ANSWERS),
    ("ipv4", "rp_filter", "1"),
    ("ipv4", "forwarding", "0"),
];

/// Makes interfaces that appear from now on come up closed: no IPv6, no ARP answers, strict reverse-path filter, no
/// forwarding. Interfaces that are there keep what they have.
///
/// # Errors
/// Fails if a setting cannot be written, for lack of privileges.
pub fn close_new_interfaces() -> Result<(), SysctlError> {
    keep_ipv4_settings()?;
    close("default")
}

/// Gives every interface its IPv4 settings as its own: the kernel hands a new default on to each that has none.
fn keep_ipv4_settings() -> Result<(), SysctlError> {
    let base = Path::new(ROOT).join("ipv4/conf");
    let failed = |error| SysctlError { path: base.clone(), value: "what it is", error };
    for entry in std::fs::read_dir(&base).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name() == "all" || entry.file_name() == "default" {
            continue;
        }
        for (_, key, _) in CLOSED.iter().filter(|(family, ..)| *family == "ipv4") {
            let path = entry.path().join(key);
            // An interface that has gone meanwhile needs nothing.
            if let Ok(value) = std::fs::read_to_string(&path) {
                let _ = std::fs::write(&path, value.trim());
            }
        }
    }
    Ok(())
}

/// Opens an interface of the underlay that came up closed, because it appeared after
/// [`close_new_interfaces`]: the host has to answer for itself there. Says whether it was closed.
///
/// # Errors
/// As [`close_interface`].
pub fn open_interface(name: &str) -> Result<bool, SysctlError> {
    let path = Path::new(ROOT).join("ipv4/conf").join(name).join("arp_ignore");
    if !std::fs::read_to_string(path).is_ok_and(|held| held.trim() == NO_ARP_ANSWERS) {
        return Ok(false);
    }
    for (family, key) in [("ipv6", "disable_ipv6"), ("ipv4", "rp_filter"), ("ipv4", "arp_ignore")] {
        set(name, family, key, "0")?;
    }
    Ok(true)
}

/// Closes one interface in the same way.
///
/// # Errors
/// Fails if a setting cannot be written, for lack of privileges or because the interface has gone.
pub fn close_interface(name: &str) -> Result<(), SysctlError> {
    close(name)
}

/// Turns forwarding on for what comes in by one interface, IPv4 and IPv6.
///
/// # Errors
/// As [`close_interface`].
pub fn forward(name: &str) -> Result<(), SysctlError> {
    set(name, "ipv4", "forwarding", "1")?;
    set(name, "ipv6", "forwarding", "1")
}

fn close(name: &str) -> Result<(), SysctlError> {
    CLOSED.iter().try_for_each(|(family, key, value)| set(name, family, key, value))
}

fn set(name: &str, family: &str, key: &str, value: &'static str) -> Result<(), SysctlError> {
    let base = Path::new(ROOT).join(family).join("conf");
    // A kernel without IPv6 has nothing to turn off.
    if !base.exists() {
        return Ok(());
    }
    let path = base.join(name).join(key);
    // Names are the kernel's: no slash, neither `.` nor `..`; but `all` and `default` are not interfaces.
    if std::fs::read_to_string(&path).is_ok_and(|held| held.trim() == value) {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(|error| SysctlError { path, value, error })
}

/// Why an interface could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// A setting could not be made.
    #[error(transparent)]
    Setting(#[from] SysctlError),
    /// It could not be brought up.
    #[error("cannot bring the interface up: {0}")]
    Up(#[source] NetlinkError),
}

/// Closes a guest's interface and brings it up. To be called after the program is attached: an interface that is down
/// takes no frames.
///
/// # Errors
/// Says which step failed; those before it hold.
pub async fn take_over(kernel: &mut Kernel, link: &Link) -> Result<(), TakeOverError> {
    close_interface(&link.name)?;
    if !link.up {
        kernel.set_up(link.index).await.map_err(TakeOverError::Up)?;
    }
    Ok(())
}
