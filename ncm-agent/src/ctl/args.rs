//! The command line: commands, options, help texts with examples.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use ncm_model::wire::{OperationStatus, ResourceType};

const EXIT_CODES: &str = "\
Exit codes:
  0  all is as asked (pending resources that will complete by themselves included)
  1  a resource was refused or failed, what was asked for is not there, or `status` shows an alarm
  2  the command line, a file or a key is wrong; nothing was changed
  3  the agent cannot be reached
  4  with --wait: something is still pending

Example:
  ncmctl status";

/// Looks into a host's NCM agent, and feeds it goal states by hand.
#[derive(Parser, Debug)]
#[command(name = "ncmctl", version, after_help = EXIT_CODES, arg_required_else_help = true, max_term_width = 110)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// Which agent and how to print.
    #[command(flatten)]
    pub global: Global,
}

/// Options of every command.
#[derive(Args, Debug)]
pub struct Global {
    /// The agent's instance
    #[arg(long, env = "NCM_INSTANCE", default_value = "default", global = true)]
    pub instance: String,

    /// The agent's Unix socket [default: /run/ncm/INSTANCE.sock]
    #[arg(long, env = "NCM_SOCKET", global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Where bpffs is mounted, to read pinned tables without an agent
    #[arg(long, env = "NCM_BPFFS", default_value = "/sys/fs/bpf", global = true, value_name = "PATH")]
    pub bpffs: PathBuf,

    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Table, global = true)]
    pub output: Output,
}

impl Global {
    /// The agent's socket: as given, or the instance's usual one.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| PathBuf::from(format!("/run/ncm/{}.sock", self.instance)))
    }
}

/// How to print.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Output {
    /// Columns for people
    Table,
    /// JSON; names are stable
    Json,
    /// YAML, with the names of JSON
    Yaml,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Apply goal states from files
    #[command(after_help = "\
A document is a GoalStateV2 in protobuf's JSON mapping, as YAML or JSON; a file holds one or several. All files are
checked before anything is sent. Operations are sent as written; none written means create or update.

Examples:
  ncmctl apply -f examples/host1.yaml
  ncmctl apply -f examples/ --wait 30
  ncmctl apply -f host1.yaml --dry-run
  generate-states | ncmctl apply -f -")]
    Apply(Files),

    /// Delete the resources that files describe
    #[command(after_help = "\
Every resource in the documents is deleted, whatever operation is written there; later documents go first.

Example:
  ncmctl delete -f examples/host1.yaml")]
    Delete(Files),

    /// Show held resources
    #[command(after_help = "\
Types: vpc, subnet, port, neighbor, security-group, dhcp, router, gateway.
With -o json or -o yaml the full configuration is shown as well.

Examples:
  ncmctl get
  ncmctl get port
  ncmctl get port 3d53801c-32ce-4e97-9572-bb966f476aaa -o yaml
  ncmctl get --status pending --status failure")]
    Get(Get),

    /// Show health: interfaces, resources, tables, alarms
    #[command(after_help = "Example:\n  ncmctl status -o json")]
    Status,

    /// Show version, layouts and identity of the agent
    #[command(after_help = "Example:\n  ncmctl info")]
    Info,

    /// Show the dataplane's tables, also while no agent runs
    #[command(
        after_help = "Examples:\n  ncmctl map list\n  ncmctl map dump ports\n  ncmctl map get endpoints_ip vni=100,ip=10.0.0.5"
    )]
    Map(Map),

    /// Show the flows that are tracked, also while no agent runs
    #[command(after_help = "\
With `-o json` each flow comes with everything that is kept of it.

Examples:
  ncmctl flows
  ncmctl flows --port 3d53801c-32ce-4e97-9572-bb966f476aaa --state established
  ncmctl flows --address 10.0.0.5 --protocol tcp -o json")]
    Flows(Flows),

    /// Show dropped packets by reason and port
    #[command(after_help = "\
Reasons are explained in docs/drop-reasons.md. While no agent runs, the pinned tables are read.

Examples:
  ncmctl drops
  ncmctl drops --watch
  ncmctl drops --port 3d53801c-32ce-4e97-9572-bb966f476aaa --watch 5")]
    Drops(Drops),

    /// Show everything the agent counts
    #[command(after_help = "Examples:\n  ncmctl counters\n  ncmctl counters path -o json")]
    Counters {
        /// Only counters whose name contains this
        #[arg(value_name = "PART")]
        filter: Option<String>,
    },

    /// Compare the kernel's tables and hooks with what they should hold
    #[command(after_help = "\
Every entry is compared; entries that nothing held claims and programs that are not where they should be are told as well.
Exits with 1 if anything differs, unless it is repaired.

Examples:
  ncmctl verify
  ncmctl verify --repair")]
    Verify {
        /// Write what is missing or different, and attach programs again
        #[arg(long)]
        repair: bool,
    },

    /// Show the digests of what is held, by type and VPC
    #[command(after_help = "\
Equal digests mean equal resources in equal revisions. What is hashed is in proto/ncm/v1/states.proto.

Examples:
  ncmctl digest
  ncmctl digest -o json")]
    Digest,

    /// Show what is held, and then every change as it comes
    #[command(after_help = "\
Ends when interrupted. Each line ends with where to go on from. With -o json each change is one line with the whole state.

Examples:
  ncmctl watch
  ncmctl watch port neighbor
  ncmctl watch --new
  ncmctl watch --from 5d0c62d1f0a9c2e1:1024 -o json")]
    Watch(Watch),

    /// Remove from the kernel's tables what nothing held claims
    #[command(after_help = "\
After the journal was lost, what an earlier agent programmed goes on forwarding until it is pushed again. When everything has
been pushed, this removes the rest.

Examples:
  ncmctl prune --dry-run
  ncmctl prune")]
    Prune {
        /// Only show what would go
        #[arg(long)]
        dry_run: bool,
    },

    /// Print a script that completes commands in a shell
    #[command(after_help = "Example:\n  ncmctl completions bash > /etc/bash_completion.d/ncmctl")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },

    /// Print a document that is generated from definitions
    #[command(hide = true, after_help = "Example:\n  ncmctl docs drop-reasons > docs/drop-reasons.md")]
    Docs {
        /// The document
        document: Document,
    },
}

/// A generated document.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Document {
    /// docs/drop-reasons.md
    DropReasons,
    /// docs/tables.md
    Tables,
}

/// Where goal states come from and how to send them.
#[derive(Args, Debug)]
pub struct Files {
    /// Files, directories (their .yaml, .yml and .json files) or `-` for standard input
    #[arg(short = 'f', long = "filename", required = true, num_args = 1.., value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Show what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Wait up to that many seconds for pending resources to complete
    #[arg(long, value_name = "SECONDS", conflicts_with = "dry_run")]
    pub wait: Option<u64>,
}

/// Which resources to show.
#[derive(Args, Debug)]
pub struct Get {
    /// Type of the resources
    #[arg(value_name = "TYPE", value_parser = resource_type)]
    pub kind: Option<ResourceType>,

    /// Their ids
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,

    /// Only resources with this status (success, failure, pending)
    #[arg(long, value_parser = operation_status)]
    pub status: Vec<OperationStatus>,
}

/// Tables.
#[derive(Args, Debug)]
pub struct Map {
    /// What to show.
    #[command(subcommand)]
    pub command: MapCommand,

    /// Read the pinned tables, even if an agent runs
    #[arg(long, global = true)]
    pub offline: bool,
}

/// What to show of tables.
#[derive(Subcommand, Debug)]
pub enum MapCommand {
    /// List the tables with their fill
    #[command(after_help = "Example:\n  ncmctl map list")]
    List,

    /// Show every entry of a table
    #[command(after_help = "Example:\n  ncmctl map dump endpoints_ip")]
    Dump {
        /// Name of the table
        name: String,
        /// Also show unused slots of arrays
        #[arg(long)]
        all: bool,
        /// Only entries with this value in this column (or in one of several: `local|remote=10.0.0.5`)
        #[arg(long, value_name = "COLUMN=VALUE")]
        only: Vec<String>,
    },

    /// Show one entry of a table
    #[command(after_help = "\
A key is written as `map dump` prints it. In a longest-prefix table the entry that covers the key is shown.

Examples:
  ncmctl map get endpoints_ip vni=100,ip=10.0.0.5
  ncmctl map get routes from=subnet-a,prefix=10.0.1.7/32")]
    Get {
        /// Name of the table
        name: String,
        /// The key
        key: String,
    },
}

/// Which flows to show: all conditions together.
#[derive(Args, Debug)]
pub struct Flows {
    /// Only this port's
    #[arg(long, value_name = "ID")]
    pub port: Option<String>,

    /// Only those with this address on either side
    #[arg(long, value_name = "IP")]
    pub address: Option<std::net::IpAddr>,

    /// Only those of this protocol: its name or number
    #[arg(long, value_name = "NAME")]
    pub protocol: Option<String>,

    /// Only those in this state: new, syn_received, established, closing, closed or reset
    #[arg(long, value_name = "STATE")]
    pub state: Option<String>,

    /// Read the pinned tables, even if an agent runs
    #[arg(long)]
    pub offline: bool,
}

/// What to watch.
#[derive(Args, Debug)]
pub struct Watch {
    /// Only resources of these types
    #[arg(value_name = "TYPE", value_parser = resource_type)]
    pub kinds: Vec<ResourceType>,

    /// Only what changes after this, as it was shown before (HISTORY:VERSION)
    #[arg(long, value_name = "FROM", value_parser = watched_from)]
    pub from: Option<(u64, u64)>,

    /// Only what changes from now on
    #[arg(long, conflicts_with = "from")]
    pub new: bool,

    /// End when all that was there has been shown
    #[arg(long, conflicts_with = "new")]
    pub once: bool,
}

/// Which drops to show.
#[derive(Args, Debug)]
pub struct Drops {
    /// Only this port's
    #[arg(long, value_name = "ID")]
    pub port: Option<String>,

    /// Show again every so many seconds what came on top, until interrupted
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", value_parser = clap::value_parser!(u64).range(1..))]
    pub watch: Option<u64>,

    /// Read the pinned tables, even if an agent runs
    #[arg(long)]
    pub offline: bool,
}

/// The words for resource types, in the order of their numbers.
pub const TYPES: &[(ResourceType, &str)] = &[
    (ResourceType::Vpc, "vpc"),
    (ResourceType::Subnet, "subnet"),
    (ResourceType::Port, "port"),
    (ResourceType::Neighbor, "neighbor"),
    (ResourceType::Securitygroup, "security-group"),
    (ResourceType::Dhcp, "dhcp"),
    (ResourceType::Router, "router"),
    (ResourceType::Gateway, "gateway"),
];

fn resource_type(text: &str) -> Result<ResourceType, String> {
    let word = text.to_ascii_lowercase().replace('_', "-");
    let word = match word.as_str() {
        "neighbour" | "neighbours" => "neighbor",
        "securitygroup" | "securitygroups" => "security-group",
        other => other,
    };
    let found = TYPES.iter().find(|(_, name)| *name == word || Some(*name) == word.strip_suffix('s'));
    found.map(|(kind, _)| *kind).ok_or_else(|| {
        let names: Vec<&str> = TYPES.iter().map(|(_, name)| *name).collect();
        format!("expected one of {}", names.join(", "))
    })
}

fn watched_from(text: &str) -> Result<(u64, u64), String> {
    let parse = || {
        let (history, version) = text.split_once(':')?;
        Some((u64::from_str_radix(history, 16).ok()?, version.parse().ok()?))
    };
    parse()
        .ok_or_else(|| "expected HISTORY:VERSION, as `ncmctl watch` and `ncmctl digest` show it".to_owned())
}

fn operation_status(text: &str) -> Result<OperationStatus, String> {
    OperationStatus::from_str_name(&text.to_ascii_uppercase().replace('-', "_"))
        .ok_or_else(|| "expected one of success, failure, invalid_arg, pending, out_of_order".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_s_help_has_an_example() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "`{path} --help` has no example");
            assert!(
                help.contains("  ncmctl ") || help.contains("| ncmctl "),
                "`{path}`: the example shows no call"
            );
            for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
                check(sub, &path);
            }
        }
        check(&Arguments::command(), "");
    }

    #[test]
    fn types_are_known_by_singular_plural_and_either_spelling() {
        for text in [
            "port",
            "ports",
            "Port",
            "neighbor",
            "neighbours",
            "security-group",
            "securitygroups",
            "security_group",
        ] {
            assert!(resource_type(text).is_ok(), "{text}");
        }
        assert!(resource_type("prot").is_err());
    }
}
