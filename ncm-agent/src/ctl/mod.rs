//! The command-line tool `ncmctl`. While the agent runs it talks to the agent's Unix socket and to nothing else;
//! tables and drops it can also read from what is pinned when no agent runs.

mod apply;
pub mod args;
mod connect;
mod counts;
pub mod document;
mod failure;
mod flows;
mod json;
mod listing;
mod maps;
mod output;
mod states;
mod status;
mod verify;
mod watch;

use clap::{CommandFactory, Parser};

pub use failure::{Exit, Failure};

use args::{Arguments, Command, Document};

/// Runs the tool on this process's arguments. Errors are printed; the result is the exit code.
#[must_use]
pub fn main() -> Exit {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version come this way as well, and are no errors.
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Ok };
            return if error.print().is_ok() { exit } else { Exit::Failed };
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::note(&format!("cannot start: {error}"));
            return Exit::Failed;
        }
    };
    match runtime.block_on(run(arguments)) {
        Ok(exit) => exit,
        Err(failure) => {
            if failure.exit != Exit::Ok {
                output::note(&failure.message);
            }
            failure.exit
        }
    }
}

/// Runs one command.
///
/// # Errors
///
/// What went wrong, with the exit code for it.
pub async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let global = arguments.global;
    match arguments.command {
        Command::Apply(files) => apply::apply(&global, files).await,
        Command::Delete(files) => apply::delete(&global, files).await,
        Command::Get(get) => states::get(&global, get).await,
        Command::Status => status::status(&global).await,
        Command::Info => status::info(&global).await,
        Command::Map(map) => maps::run(&global, map).await,
        Command::Flows(flows) => flows::run(&global, flows).await,
        Command::Drops(drops) => counts::drops(&global, drops).await,
        Command::Counters { filter } => counts::counters(&global, filter).await,
        Command::Verify { repair } => verify::verify(&global, repair).await,
        Command::Digest => watch::digest(&global).await,
        Command::Watch(what) => watch::watch(&global, what).await,
        Command::Prune { dry_run } => verify::prune(&global, dry_run).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "ncmctl", &mut script);
            output::print(&String::from_utf8_lossy(&script))?;
            Ok(Exit::Ok)
        }
        Command::Docs { document } => {
            output::print(&match document {
                Document::DropReasons => crate::inspect::documents::drop_reasons(),
                Document::Tables => crate::inspect::documents::tables(),
            })?;
            Ok(Exit::Ok)
        }
    }
}
