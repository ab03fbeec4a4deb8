//! The NCM node agent.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use ncm_agent::agent;
use ncm_agent::config::{Config, DEFAULT_PATH, EXIT_CONFIG, Overrides};

/// The NCM node agent: makes this host's kernel forward as its controller says.
#[derive(Parser, Debug)]
#[command(name = "ncm-agent", version, after_help = "Example: ncm-agent --config /etc/ncm/ncm-agent.toml")]
struct Arguments {
    /// Configuration file
    #[arg(long, value_name = "PATH", help = format!("Configuration file [default: {DEFAULT_PATH}, if it exists]"))]
    config: Option<PathBuf>,
    /// Only validate the configuration: exit code 0 if it can be used, 78 if not
    #[arg(long)]
    check: bool,
    /// Remove all programs, tables and links of the instance: guests are cut off
    #[arg(long, conflicts_with = "check")]
    teardown: bool,
    /// Name that sets this agent apart from others on the host, instead of the configuration's
    #[arg(long, value_name = "NAME")]
    instance: Option<String>,
    /// Log filter, instead of the configuration's log.level
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

#[allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "before the log is started, the terminal is all there is"
)]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let overrides = Overrides { instance: arguments.instance, log_level: arguments.log_level };
    let config = match Config::load(arguments.config.as_deref(), &overrides) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if arguments.check {
        println!("the configuration is valid");
        return ExitCode::SUCCESS;
    }
    let outcome = if arguments.teardown { agent::teardown(&config) } else { agent::run(config) };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ncm-agent: {}", ncm_agent::explained(&error));
            ExitCode::FAILURE
        }
    }
}
