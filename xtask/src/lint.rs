//! What a change has to pass besides the tests: format, clippy and rustdoc, warnings being errors.

use anyhow::Result;

use crate::{
    command::{cargo, run},
    components::Component,
    object,
    setup::{self, Need},
};

/// The parts of `cargo xtask lint`, in order.
pub const PARTS: [&str; 3] = ["format", "clippy", "doc"];

/// Runs all parts, or the one named.
pub fn lint(only: Option<&str>) -> Result<()> {
    let wanted = |part: &str| only.is_none_or(|only| only == part);
    setup::ensure(&[Need::Components, Need::Object])?;
    if wanted("format") {
        run(&mut Component::Rustfmt.command(&["--all", "--check"]))?;
        run(&mut Component::Rustfmt.command(&["--manifest-path", "fuzz/Cargo.toml", "--check"]))?;
    }
    if wanted("clippy") {
        let arguments = ["--release", "--workspace", "--all-targets", "--", "-D", "warnings"];
        run(&mut Component::Clippy.command(&arguments))?;
        object::check()?;
    }
    if wanted("doc") {
        doc()?;
    }
    Ok(())
}

/// The workspace's own documentation, private items included.
pub fn doc() -> Result<()> {
    setup::ensure(&[Need::Object])?;
    let mut cargo = cargo(["doc", "--release", "--workspace", "--no-deps", "--document-private-items"]);
    run(cargo.env("RUSTDOCFLAGS", "-D warnings"))
}
