//! Log records of the programs, handed on to `tracing`.

use std::os::fd::{AsFd, BorrowedFd};

use aya_log::EbpfLogger;

use crate::Error;

/// Which records the programs write. It is a constant to them: what is off costs nothing, and a change takes effect
/// with the next load.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[repr(u8)]
pub enum LogLevel {
    /// None.
    #[default]
    Off = 0,
    /// Errors.
    Error = 1,
    /// And warnings.
    Warn = 2,
    /// And what happens seldom.
    Info = 3,
    /// And decisions about packets.
    Debug = 4,
    /// And everything else.
    Trace = 5,
}

impl LogLevel {
    /// Name of the programs' constant.
    pub(crate) const GLOBAL: &'static str = aya_log::LEVEL;
}

impl std::str::FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "off" => Self::Off,
            "error" => Self::Error,
            "warn" => Self::Warn,
            "info" => Self::Info,
            "debug" => Self::Debug,
            "trace" => Self::Trace,
            other => return Err(format!("`{other}` is none of off, error, warn, info, debug, trace")),
        })
    }
}

/// Reads the programs' records. Its descriptor becomes readable when there are some; then call
/// [`ProgramLog::forward`].
pub struct ProgramLog(EbpfLogger<Forward>);

impl std::fmt::Debug for ProgramLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProgramLog")
    }
}

impl ProgramLog {
    /// Takes the ring of records out of the loaded object.
    pub(crate) fn take(object: &mut aya::Ebpf) -> Result<Self, Error> {
        EbpfLogger::init_with_logger(object, Forward).map(Self).map_err(|error| Error::Log(error.to_string()))
    }

    /// Hands on all records that are there.
    pub fn forward(&mut self) {
        self.0.flush();
    }
}

impl AsFd for ProgramLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::os::fd::AsRawFd for ProgramLog {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// Turns records of the `log` crate, which aya-log speaks, into events.
struct Forward;

impl log::Log for Forward {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        const TARGET: &str = "ncm::program";
        let (line, text) = (record.line(), record.args());
        match record.level() {
            log::Level::Error => tracing::error!(target: TARGET, line, "{text}"),
            log::Level::Warn => tracing::warn!(target: TARGET, line, "{text}"),
            log::Level::Info => tracing::info!(target: TARGET, line, "{text}"),
            log::Level::Debug => tracing::debug!(target: TARGET, line, "{text}"),
            log::Level::Trace => tracing::trace!(target: TARGET, line, "{text}"),
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_from_their_names() {
        assert_eq!("off".parse(), Ok(LogLevel::Off));
        assert_eq!("trace".parse(), Ok(LogLevel::Trace));
        assert!("Loud".parse::<LogLevel>().is_err());
        assert!(LogLevel::Error < LogLevel::Debug);
    }
}
