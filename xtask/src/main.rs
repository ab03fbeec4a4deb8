//! Placeholder.
#![allow(clippy::print_stdout, reason = "a tool prints")]
fn main() -> anyhow::Result<()> {
    println!("{}", xtask::object::build(&[])?.display());
    Ok(())
}
