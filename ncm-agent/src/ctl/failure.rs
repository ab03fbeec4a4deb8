//! How the tool ends: its exit codes, and errors that carry one.

use std::process::ExitCode;

/// Exit codes, for scripts. Documented in the tool's help.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// All is as asked.
    Ok = 0,
    /// A resource was refused or failed, or what was asked for is not there.
    Failed = 1,
    /// The command line, a file or a key is wrong; nothing was changed.
    Usage = 2,
    /// The agent cannot be reached.
    Unreachable = 3,
    /// With `--wait`: something is still pending when the time is over.
    Pending = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error with the code that the tool ends with.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What went wrong, and where it can, what to do.
    pub message: String,
}

impl Failure {
    /// What was asked for failed or is not there.
    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, message: message.into() }
    }

    /// The command line or an input is wrong.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, message: message.into() }
    }

    /// The agent cannot be reached.
    pub(super) fn unreachable(message: impl Into<String>) -> Self {
        Self { exit: Exit::Unreachable, message: message.into() }
    }
}

/// The cause behind all others.
fn innermost<'e>(mut error: &'e (dyn std::error::Error + 'static)) -> &'e (dyn std::error::Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

/// What is said of a connection that was made and then broke. Whom the agent does not let in finds it closed, at the
/// first write or at the first answer, as it happens.
pub(super) fn closed(error: &(dyn std::error::Error + 'static)) -> String {
    format!(
        "the agent closed the connection ({}): it lets in root and members of the group that `[api] group` names; its \
         log says more",
        innermost(error)
    )
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        let message = status.message();
        // The agent did not say this: its statuses have no source.
        if let Some(source) = std::error::Error::source(&status) {
            return Self::unreachable(closed(source));
        }
        match status.code() {
            tonic::Code::InvalidArgument => Self::usage(message),
            tonic::Code::PermissionDenied | tonic::Code::Unauthenticated => Self::unreachable(format!(
                "the agent refuses this user: {message}; run as root or as a member of the socket's group"
            )),
            tonic::Code::Unavailable | tonic::Code::Cancelled => Self::unreachable(format!(
                "the connection to the agent broke: {message}; `systemctl status ncm-agent`"
            )),
            tonic::Code::Unimplemented => {
                Self::failed(format!("the agent is of another version and cannot do this: {message}"))
            }
            _ => Self::failed(message),
        }
    }
}

impl From<crate::inspect::read::ReadError> for Failure {
    fn from(error: crate::inspect::read::ReadError) -> Self {
        use crate::inspect::KeyError;
        use crate::inspect::read::ReadError;
        match error {
            ReadError::Key(KeyError::Unknown { .. }) => Self::failed(error.to_string()),
            ReadError::Key(_) | ReadError::NoTable { .. } | ReadError::Condition { .. } => {
                Self::usage(error.to_string())
            }
            ReadError::NoEntry { .. } | ReadError::NoPort(_) => Self::failed(error.to_string()),
            ReadError::Dataplane(_) => Self::unreachable(error.to_string()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        // Whoever read our output has seen enough (`ncmctl … | head`).
        let exit = if error.kind() == std::io::ErrorKind::BrokenPipe { Exit::Ok } else { Exit::Failed };
        Self { exit, message: format!("cannot print: {error}") }
    }
}
