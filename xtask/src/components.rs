//! rustfmt and clippy: rustup's, or, where rustup has none and cannot download any, the distribution's.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use crate::command::cargo;

/// What checks the sources, and is not part of a minimal toolchain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    /// `cargo fmt`
    Rustfmt,
    /// `cargo clippy`
    Clippy,
}

impl Component {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Rustfmt, Self::Clippy];

    /// rustup's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rustfmt => "rustfmt",
            Self::Clippy => "clippy",
        }
    }

    /// The Debian package that belongs to the compiler which is used for the eBPF object.
    pub fn package(self) -> &'static str {
        match self {
            Self::Rustfmt => "rustfmt-web",
            Self::Clippy => "rust-web-clippy",
        }
    }

    fn subcommand(self) -> &'static str {
        match self {
            Self::Rustfmt => "fmt",
            Self::Clippy => "clippy",
        }
    }

    /// A distribution's subcommand of cargo. rustup's directory has a namesake, which only says that it has none.
    fn distributions(self) -> &'static Path {
        Path::new(match self {
            Self::Rustfmt => "/usr/bin/cargo-fmt",
            Self::Clippy => "/usr/bin/cargo-clippy",
        })
    }

    /// Whether it can be run.
    pub fn is_there(self) -> bool {
        self.is_rustups() || self.distributions().is_file()
    }

    fn is_rustups(self) -> bool {
        let mut cargo = cargo([self.subcommand(), "--version"]);
        cargo.stdout(Stdio::null()).stderr(Stdio::null());
        cargo.status().is_ok_and(|status| status.success())
    }

    /// The subcommand with arguments, in the workspace's root.
    pub fn command(self, arguments: &[&str]) -> Command {
        let mut command = cargo([self.subcommand()]);
        if !self.is_rustups() {
            let mut other = Command::new(self.distributions());
            other.arg(self.subcommand()).stdin(Stdio::null());
            if let Some(directory) = command.get_current_dir() {
                other.current_dir(directory);
            }
            // What it was built of: metadata of another compiler would not fit.
            other
                .env("RUSTC", "/usr/bin/rustc")
                .env("RUSTFMT", "/usr/bin/rustfmt")
                .env_remove("LD_LIBRARY_PATH");
            command = other;
        }
        command.args(arguments);
        command
    }
}
