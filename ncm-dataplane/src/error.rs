//! What can go wrong, each with what an operator can do about it.

use std::io;
use std::path::PathBuf;

use ncm_common::tables::LAYOUT_VERSION;

/// An error of the dataplane.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The eBPF object was left out of this build.
    #[error("this build carries no eBPF object: run `cargo xtask setup`, then build again")]
    NoObject,

    /// The kernel is too old.
    #[error("this kernel ({release}) is too old: NCM needs Linux 6.1 or later")]
    OldKernel {
        /// Release of the running kernel.
        release: String,
    },

    /// The eBPF object could not be parsed, or one of its maps not be created.
    #[error("cannot load the eBPF object: {}{}", chain(.0), privilege_hint(.0))]
    Object(Box<aya::EbpfError>),

    /// The kernel's verifier refused a program.
    #[error("the kernel refused the program `{program}` ({source}); the end of the verifier's log:\n{log}")]
    Verifier {
        /// The program.
        program: String,
        /// The last lines of the verifier's log.
        log: String,
        /// What the kernel said.
        source: io::Error,
    },

    /// A program could not be loaded for another reason than the verifier's.
    #[error("cannot load the program `{program}`: {reason}")]
    Program {
        /// The program.
        program: String,
        /// Why.
        reason: String,
    },

    /// The object lacks something that it must contain.
    #[error("the eBPF object has no {what} `{name}`: object and agent are not of the same build")]
    Missing {
        /// "program" or "table".
        what: &'static str,
        /// Its name.
        name: String,
    },

    /// There is no bpffs, and it could not be mounted.
    #[error("no bpffs at {}: {source}; run `mount -t bpf bpf {}` as root", path.display(), path.display())]
    NoBpffs {
        /// Where it should be.
        path: PathBuf,
        /// Why it could not be mounted.
        source: io::Error,
    },

    /// The instance's name cannot be part of a path.
    #[error("the instance name `{0}` must be 1 to 32 letters, digits, `-` or `_`")]
    Instance(String),

    /// A file or directory in bpffs could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Path {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// A pinned table is not what is written beside it.
    #[error(
        "the pinned table {} has {what} {found}, and should have {wanted}: something else has been pinned there. Remove the instance's \
         state (`ncm-agent --teardown`, which interrupts traffic) and start again",
        path.display()
    )]
    Layout {
        /// The pinned table.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// What the pinned table has.
        found: u32,
        /// What was expected.
        wanted: u32,
    },

    /// Tables of another layout are in use that this version cannot take over.
    #[error(
        "programs of another version (table layout {found}) are forwarding for instance `{instance}`, and this one (layout \
         {LAYOUT_VERSION}) cannot take over their tables: {reason}. They go on. `ncm-agent --teardown` removes them; traffic then \
         stops until this agent has started"
    )]
    OtherLayout {
        /// The instance.
        instance: String,
        /// The layout version in use.
        found: u32,
        /// Why not.
        reason: String,
    },

    /// A table is to be smaller than what is in it.
    #[error(
        "the table {table} is to have {capacity} entries ({}), which is too few for what is in it: nothing was \
         changed. Set it higher, or remove something first",
        capacity_key(.table)
    )]
    NoRoom {
        /// The table, in lower case.
        table: String,
        /// What it is to have.
        capacity: u32,
    },

    /// Nothing is pinned under this instance's name.
    #[error(
        "no tables of instance `{instance}` (layout {wanted}) under {}{}: has its agent run on this host since it booted?",
        path.display(),
        other_layouts(.found)
    )]
    NotLoaded {
        /// The instance.
        instance: String,
        /// Where its pins should be.
        path: PathBuf,
        /// The layout version looked for.
        wanted: u32,
        /// The layout versions that are there instead.
        found: Vec<u32>,
    },

    /// A table could not be read or written.
    #[error("cannot {action} the table {table}: {source}")]
    Table {
        /// What was tried.
        action: &'static str,
        /// The table, in lower case.
        table: String,
        /// Why not.
        source: io::Error,
    },

    /// A program could not be attached.
    #[error("cannot attach {hook} to interface {ifindex}: {source}; {remedy}")]
    Attach {
        /// The hook.
        hook: crate::Hook,
        /// The interface's index.
        ifindex: u32,
        /// What the kernel said.
        source: io::Error,
        /// What to do.
        remedy: String,
    },

    /// The hook is held by a program of ours that this instance does not own, so that both would run.
    #[error(
        "interface {ifindex} already has the program `{program}` (id {id}, link {link}) at {hook}: another instance \
         or a left-over holds it; stop and tear that one down, or {}", removal(*.link)
    )]
    Occupied {
        /// The hook.
        hook: crate::Hook,
        /// The interface's index.
        ifindex: u32,
        /// The program's name.
        program: String,
        /// The program's id.
        id: u32,
        /// The link's id; 0 of a filter.
        link: u32,
    },

    /// A program could not be detached.
    #[error("cannot remove the filter of {hook} on interface {ifindex}: {source}")]
    Detach {
        /// The hook.
        hook: crate::Hook,
        /// The interface's index.
        ifindex: u32,
        /// What the kernel said.
        source: io::Error,
    },

    /// The filters of interfaces could not be listed.
    #[error("cannot list the filters of interfaces (`tc filter show`): {0}")]
    Filters(io::Error),

    /// A program could not be run on a test packet.
    #[error("cannot run `{program}` on a test packet: {source}")]
    TestRun {
        /// The program.
        program: String,
        /// Why not.
        source: io::Error,
    },

    /// Log records of the programs cannot be read.
    #[error("cannot read the programs' log: {0}")]
    Log(String),
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// How a program of ours that is somebody else's can be removed.
fn removal(link: u32) -> String {
    if link == 0 {
        "delete its filter (`tc filter show`, `tc filter del`)".to_owned()
    } else {
        format!("run `bpftool link detach id {link}`")
    }
}

/// Says what is missing if the kernel refused for lack of privilege.
fn privilege_hint(error: &aya::EbpfError) -> &'static str {
    let text = chain(error);
    if text.contains("os error 1)") {
        " (run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON)"
    } else {
        ""
    }
}

/// The configuration's name for a table's capacity.
fn capacity_key(table: &str) -> String {
    let key = ncm_common::tables::table(table).and_then(|spec| spec.capacity_key);
    key.map_or_else(|| "fixed".to_owned(), |key| format!("capacity.{key}"))
}

/// Names the layouts that are there instead of the one looked for.
fn other_layouts(found: &[u32]) -> String {
    if found.is_empty() {
        return String::new();
    }
    format!(" (there are tables of layout {}: use the tool of that version)", list(found))
}

fn list(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}
