//! Looks into a host's NCM agent, and feeds it goal states by hand.

fn main() -> std::process::ExitCode {
    ncm_agent::ctl::main().into()
}
