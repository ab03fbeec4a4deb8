//! Attaching programs to interfaces, so that they stay when the agent goes and the next agent finds them again: by BPF links
//! that are pinned, or, where the kernel has no tcx, by filters.
//!
//! XDP is attached natively or not at all: a driver without it gets the tc programs instead. tc programs go in front
//! of whatever else is on the hook, so that a guest's frame meets ours first.

mod attached;
mod clsact;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use aya_obj::generated::{bpf_attach_type, bpf_link_type};
use ncm_common::programs;

use crate::message::Refusal;
use crate::pin::{PinPaths, names, path_error};
use crate::programs::name_of;
use crate::{Error, sys};

pub(crate) use attached::Attached;

/// The oldest kernel that is known to do, where there is no tcx: major and minor number.
const OLDEST: (u32, u32) = (6, 1);

/// How tc programs are attached.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum TcAttach {
    /// By tcx, where the kernel has it (Linux 6.6 has); else as [`TcAttach::Clsact`].
    #[default]
    Auto,
    /// As filters on a clsact qdisc.
    Clsact,
}

/// A place where one of our programs runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Hook {
    /// Native XDP on an underlay interface.
    WireXdp,
    /// tc ingress on an underlay interface.
    WireTc,
    /// tc ingress on the relay device.
    RelayTc,
    /// tc ingress on a guest's interface.
    GuestTc,
    /// Native XDP on a guest's interface.
    GuestXdp,
    /// tc ingress on the interface that hands packets up to the agent.
    HandUpTc,
    /// tc egress on that interface: what the agent sends to guests.
    HandDownTc,
}

impl Hook {
    /// Every hook.
    pub const ALL: [Self; 7] = [
        Self::WireXdp,
        Self::WireTc,
        Self::RelayTc,
        Self::GuestTc,
        Self::GuestXdp,
        Self::HandUpTc,
        Self::HandDownTc,
    ];

    /// The name of the program that runs here.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::WireXdp => programs::WIRE_XDP,
            Self::WireTc => programs::WIRE_TC,
            Self::RelayTc => programs::RELAY_TC,
            Self::GuestTc => programs::GUEST_TC,
            Self::GuestXdp => programs::GUEST_XDP,
            Self::HandUpTc => programs::HAND_UP_TC,
            Self::HandDownTc => programs::HAND_DOWN_TC,
        }
    }

    /// The hook where that program runs.
    #[must_use]
    pub fn of_program(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.program() == name)
    }

    /// Whether the hook is XDP (else tc).
    #[must_use]
    pub const fn is_xdp(self) -> bool {
        matches!(self, Self::WireXdp | Self::GuestXdp)
    }

    const fn attach_type(self) -> bpf_attach_type {
        match self {
            Self::WireXdp | Self::GuestXdp => bpf_attach_type::BPF_XDP,
            Self::WireTc | Self::RelayTc | Self::GuestTc | Self::HandUpTc => bpf_attach_type::BPF_TCX_INGRESS,
            Self::HandDownTc => bpf_attach_type::BPF_TCX_EGRESS,
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.program())
    }
}

/// A program of ours on an interface.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Attachment {
    /// Where.
    pub hook: Hook,
    /// On which interface.
    pub ifindex: u32,
    /// The kernel's id of the link; 0 of a filter.
    pub link: u32,
    /// The kernel's id of the program.
    pub program: u32,
}

/// A program, or a filter of another kind, of somebody else's on the same hook.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Foreign {
    /// Its name; of a filter that is no program its kind.
    pub name: String,
    /// The kernel's id of it; 0 if it is no program.
    pub program: u32,
    /// The kernel's id of its link; 0 if it is attached without one.
    pub link: u32,
}

/// A program of ours on an interface that another instance has put there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    /// The instance, if it has its pins where we have ours.
    pub instance: Option<String>,
    /// The program's name.
    pub program: String,
    /// The kernel's id of it.
    pub id: u32,
}

/// By which way tc programs are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    Tcx,
    Clsact,
}

impl Way {
    /// The way that is wanted, of those that the kernel has. One that is too old is refused: it says so before anything is changed,
    /// and in less time than its verifier would take.
    pub(crate) fn of(wanted: TcAttach) -> Result<Self, Error> {
        // Any interface will do, there or not: without tcx the question itself is invalid.
        let asked = sys::query_tcx(1, bpf_attach_type::BPF_TCX_INGRESS);
        let has_tcx = asked.err().and_then(|error| error.raw_os_error()) != Some(libc::EINVAL);
        if !has_tcx {
            let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
            if is_too_old(&release) {
                return Err(Error::OldKernel { release: release.trim().to_owned() });
            }
        }
        Ok(if has_tcx && wanted == TcAttach::Auto { Self::Tcx } else { Self::Clsact })
    }
}

/// Whether a kernel's release is of before the oldest that will do. Who writes it otherwise may try.
fn is_too_old(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    matches!((numbers.next().flatten(), numbers.next().flatten()), (Some(major), Some(minor)) if (major, minor) < OLDEST)
}

/// Who has a program of ours on an interface, if it is not `instance`. `xdp`: the program that runs natively at XDP there.
///
/// # Errors
/// [`Error::Path`] if pinned links cannot be read, [`Error::Instance`] for an impossible name.
pub fn held_by_another(
    bpffs: &Path,
    instance: &str,
    ifindex: u32,
    xdp: Option<u32>,
) -> Result<Option<Holder>, Error> {
    let hook = Hook::GuestTc;
    let filters = clsact::on(hook, ifindex).map_err(|source| attach_error(hook, ifindex, source.into()))?;
    let (named, unnamed): (Vec<_>, Vec<_>) = filters.into_iter().partition(|filter| filter.owner.is_some());
    for clsact::Filter { program: id, owner, .. } in named {
        if let Some(owner) = owner.filter(|owner| owner.instance != instance) {
            let program = owner.hook.program().to_owned();
            return Ok(Some(Holder { instance: Some(owner.instance), program, id }));
        }
    }
    // A kernel without tcx has no programs there.
    let tcx = sys::query_tcx(ifindex, hook.attach_type()).unwrap_or_default();
    let ids = tcx.into_iter().map(|(program, _)| program).chain(xdp);
    let ids = ids.chain(unnamed.into_iter().map(|filter| filter.program));
    let ours: Vec<(u32, String)> =
        ids.map(|id| (id, name_of(id))).filter(|(_, name)| Hook::of_program(name).is_some()).collect();
    if ours.is_empty() {
        return Ok(None);
    }
    let own = programs_of(&PinPaths::new(bpffs, instance)?)?;
    let Some((id, program)) = ours.into_iter().find(|(id, _)| !own.contains(id)) else { return Ok(None) };
    let mut holder = None;
    for name in names(&bpffs.join("ncm"))? {
        let Ok(paths) = PinPaths::new(bpffs, &name) else { continue };
        if programs_of(&paths)?.contains(&id) {
            holder = Some(name);
            break;
        }
    }
    Ok(Some(Holder { instance: holder, program, id }))
}

/// The ids of the programs that an instance has attached by links, by all sets of tables.
fn programs_of(paths: &PinPaths) -> Result<BTreeSet<u32>, Error> {
    let mut found = BTreeSet::new();
    for links in paths.links()? {
        found.extend(pinned(&links)?.into_iter().map(|attachment| attachment.program));
    }
    Ok(found)
}

/// Where an instance has programs attached, whatever the layout of their tables.
pub(crate) fn of_instance(paths: &PinPaths) -> Result<Vec<Attachment>, Error> {
    let mut found = Vec::new();
    for links in paths.links()? {
        found.append(&mut pinned(&links)?);
    }
    let instance = paths.name();
    let filters = clsact::all(instance).map_err(Error::Filters)?;
    found.extend(filters.into_iter().filter_map(|(hook, ifindex)| examine_filter(instance, hook, ifindex)));
    found.sort_unstable();
    Ok(found)
}

/// Removes all filters of an instance.
pub(crate) fn remove_filters(instance: &str) -> Result<(), Error> {
    for (hook, ifindex) in clsact::all(instance).map_err(Error::Filters)? {
        clsact::detach(instance, hook, ifindex).map_err(|source| Error::Detach { hook, ifindex, source })?;
    }
    Ok(())
}

/// Reads the links pinned in `directory`.
fn pinned(directory: &Path) -> Result<Vec<Attachment>, Error> {
    let mut found = Vec::new();
    for name in names(directory)? {
        let Some((hook, _)) = parse_name(&name) else { continue };
        let path = directory.join(&name);
        let link = sys::get_pinned(&path, false).map_err(path_error("open", &path))?;
        found.extend(examine(hook, &link));
    }
    found.sort_unstable();
    Ok(found)
}

/// What a link is attached to; `None` once its interface is gone.
fn examine(hook: Hook, link: &OwnedFd) -> Option<Attachment> {
    let info = sys::link_info(link.as_fd()).ok()?;
    (info.ifindex != 0).then_some(Attachment {
        hook,
        ifindex: info.ifindex,
        link: info.id,
        program: info.program,
    })
}

/// What an instance's filter is attached to; `None` if there is none.
fn examine_filter(instance: &str, hook: Hook, ifindex: u32) -> Option<Attachment> {
    let filter = clsact::find(instance, hook, ifindex)?;
    Some(Attachment { hook, ifindex, link: 0, program: filter.program })
}

fn pin_name(hook: Hook, ifindex: u32) -> String {
    format!("{}-{ifindex}", hook.program())
}

fn parse_name(name: &str) -> Option<(Hook, u32)> {
    let (program, ifindex) = name.rsplit_once('-')?;
    Some((Hook::of_program(program)?, ifindex.parse().ok()?))
}

/// The programs on a hook, in order of execution: filters come after tcx.
pub(crate) fn on_hook(hook: Hook, ifindex: u32) -> Result<Vec<Foreign>, Error> {
    let failed = |source: io::Error| attach_error(hook, ifindex, source.into());
    let linked = |ids: Vec<(u32, u32)>| {
        ids.into_iter().map(|(program, link)| Foreign { name: name_of(program), program, link })
    };
    if hook.is_xdp() {
        return Ok(linked(xdp_links(ifindex).map_err(failed)?).collect());
    }
    let tcx = match sys::query_tcx(ifindex, hook.attach_type()) {
        // No tcx.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Vec::new(),
        found => found.map_err(failed)?,
    };
    let filters = clsact::on(hook, ifindex).map_err(failed)?.into_iter();
    let filters = filters.map(|clsact::Filter { kind, program, .. }| Foreign {
        name: if program == 0 { kind } else { name_of(program) },
        program,
        link: 0,
    });
    Ok(linked(tcx).chain(filters).collect())
}

/// XDP has no query: the link that holds an interface is found among all links.
fn xdp_links(ifindex: u32) -> io::Result<Vec<(u32, u32)>> {
    let mut found = Vec::new();
    let mut id = 0;
    while let Some(next) = sys::next_link(id)? {
        id = next;
        // A link may go while we look.
        let Ok(info) = sys::link_by_id(id).and_then(|link| sys::link_info(link.as_fd())) else { continue };
        if info.kind == bpf_link_type::BPF_LINK_TYPE_XDP as u32 && info.ifindex == ifindex {
            found.push((info.program, info.id));
        }
    }
    Ok(found)
}

fn attach_error(hook: Hook, ifindex: u32, refusal: Refusal) -> Error {
    let Refusal { error: source, words } = refusal;
    let remedy = match source.raw_os_error() {
        Some(libc::ENODEV) => "the interface is gone".to_owned(),
        Some(libc::EPERM) => "run as root, or with CAP_BPF and CAP_NET_ADMIN".to_owned(),
        Some(libc::EBUSY | libc::EEXIST) => {
            let holders = xdp_links(ifindex).unwrap_or_default();
            let holders: Vec<String> =
                holders.iter().map(|(id, link)| format!("`{}` (link {link})", name_of(*id))).collect();
            let holders = if holders.is_empty() { "a program".to_owned() } else { holders.join(", ") };
            format!("{holders} already holds the interface: detach it, or use the tc mode")
        }
        Some(libc::EOPNOTSUPP | libc::ERANGE | libc::E2BIG) if hook.is_xdp() => {
            "its driver cannot run XDP natively with this MTU and these settings: lower the MTU, or use the tc mode"
                .to_owned()
        }
        Some(libc::EINVAL) if hook.is_xdp() => {
            "the driver or the kernel refused it: BPF links for XDP need Linux 5.9".to_owned()
        }
        _ => words.map_or_else(|| "see the kernel's log".to_owned(), |words| format!("the kernel says: {words}")),
    };
    Error::Attach { hook, ifindex, source, remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_is_too_old_is_told_by_its_release() {
        for old in ["4.19.0", "5.10.0-30-cloud-amd64", "6.0.1"] {
            assert!(is_too_old(old), "{old}");
        }
        for new in ["6.1.0-50-cloud-amd64\n", "6.12.107+deb13", "7.0-rc1", "6.6", "", "mine"] {
            assert!(!is_too_old(new), "{new}");
        }
    }

    #[test]
    fn a_pin_is_named_after_hook_and_interface() {
        for hook in Hook::ALL {
            assert_eq!(parse_name(&pin_name(hook, 17)), Some((hook, 17)));
        }
        for other in ["", "wire_xdp", "wire_xdp-", "wire_xdp-x", "nothing-1"] {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }
}
