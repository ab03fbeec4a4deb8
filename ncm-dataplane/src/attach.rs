//! Attaching programs to interfaces, by BPF links that are pinned: they stay when the agent goes, and the next agent
//! finds them again.
//!
//! XDP is attached natively or not at all: a driver without it gets the tc programs instead. tcx programs go in front
//! of whatever else is on the hook, so that a guest's frame meets ours first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use aya_obj::generated::{bpf_attach_type, bpf_link_type};
use ncm_common::programs;

use crate::pin::{PinPaths, names, path_error};
use crate::programs::{Programs, name_of};
use crate::{Error, sys};

/// `XDP_FLAGS_DRV_MODE` of `linux/if_link.h`: natively, without fallback to generic XDP.
const NATIVE: u32 = 1 << 2;
/// `BPF_F_BEFORE` of `linux/bpf.h`: without a relative program, in front of all.
const IN_FRONT: u32 = 1 << 3;

/// A place where one of our programs runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Hook {
    /// Native XDP on an underlay interface.
    WireXdp,
    /// tcx ingress on an underlay interface.
    WireTc,
    /// tcx ingress on the relay device.
    RelayTc,
    /// tcx ingress on a guest's interface.
    GuestTc,
    /// Native XDP on a guest's interface.
    GuestXdp,
    /// tcx ingress on the interface that hands packets up to the agent.
    HandUpTc,
    /// tcx egress on that interface: what the agent sends to guests.
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

    /// Whether the hook is XDP (else tcx).
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
    /// The kernel's id of the link.
    pub link: u32,
    /// The kernel's id of the program.
    pub program: u32,
}

/// A program of somebody else's on the same hook.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Foreign {
    /// Its name.
    pub name: String,
    /// The kernel's id of it.
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

/// Refuses a kernel that is too old to attach what would be loaded: it says so before anything is changed, and in less time than its
/// verifier would take.
pub(crate) fn needs_tcx() -> Result<(), Error> {
    // Any interface will do, there or not: without tcx the question itself is invalid.
    match sys::query_tcx(1, bpf_attach_type::BPF_TCX_INGRESS) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
            Err(Error::NoTcx { release: release.trim().to_owned() })
        }
        _ => Ok(()),
    }
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
    // A kernel without tcx has no programs there.
    let tcx = sys::query_tcx(ifindex, bpf_attach_type::BPF_TCX_INGRESS).unwrap_or_default();
    let ids = tcx.into_iter().map(|(program, _)| program).chain(xdp);
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

/// The ids of the programs that an instance has attached, by all sets of tables.
fn programs_of(paths: &PinPaths) -> Result<BTreeSet<u32>, Error> {
    let mut found = BTreeSet::new();
    for links in paths.links()? {
        found.extend(pinned(&links)?.into_iter().map(|attachment| attachment.program));
    }
    Ok(found)
}

/// The links of one instance.
#[derive(Debug)]
pub(crate) struct Links {
    /// Where links are pinned; `None`: they live as long as this process.
    directory: Mutex<Option<PathBuf>>,
    held: Mutex<BTreeMap<(Hook, u32), OwnedFd>>,
}

impl Links {
    /// Links that nobody has pinned.
    pub(crate) fn unpinned() -> Self {
        Self { directory: Mutex::new(None), held: Mutex::default() }
    }

    /// Takes over the pinned links, those of `others` too: from now on they are in `directory`. Those whose interface is gone go.
    pub(crate) fn adopt(directory: PathBuf, others: &[PathBuf]) -> Result<Self, Error> {
        let links = Self { directory: Mutex::new(Some(directory.clone())), held: Mutex::default() };
        for place in others.iter().filter(|other| **other != directory).chain([&directory]) {
            for name in names(place)? {
                links.adopt_one(place, &name, &directory)?;
            }
        }
        Ok(links)
    }

    fn adopt_one(&self, place: &Path, name: &str, directory: &Path) -> Result<(), Error> {
        let path = place.join(name);
        let Some((hook, ifindex)) = parse_name(name) else {
            tracing::warn!(path = %path.display(), "not one of our links: left alone");
            return Ok(());
        };
        let link = sys::get_pinned(&path, false).map_err(path_error("open", &path))?;
        let info = sys::link_info(link.as_fd()).map_err(path_error("examine", &path))?;
        // The interface has gone, or has left for another namespace; only the pin keeps the link.
        if info.ifindex != ifindex {
            return remove_gone(hook, ifindex, &link, &path);
        }
        if place != directory {
            let new = directory.join(name);
            std::fs::rename(&path, &new).map_err(path_error("move a link's pin to", &new))?;
        }
        self.held().insert((hook, ifindex), link);
        Ok(())
    }

    /// Puts these programs behind all links, each at once.
    pub(crate) fn swap(&self, programs: &Programs) -> Result<(), Error> {
        let mut held = self.held();
        let mut gone = Vec::new();
        for ((hook, ifindex), link) in held.iter() {
            match sys::link_update(link.as_fd(), programs.get(hook.program())?) {
                Ok(()) => {
                    tracing::info!(%hook, ifindex, "took over the attached program");
                    crate::transition::reached("swapping");
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => gone.push((*hook, *ifindex)),
                Err(source) => return Err(attach_error(*hook, *ifindex, source)),
            }
        }
        for (hook, ifindex) in gone {
            if let (Some(link), Some(path)) = (held.remove(&(hook, ifindex)), self.pin_path(hook, ifindex)) {
                remove_gone(hook, ifindex, &link, &path)?;
            }
        }
        Ok(())
    }

    /// The directory with the pins has another name now.
    pub(crate) fn are_in(&self, directory: PathBuf) {
        *self.directory() = Some(directory);
    }

    /// Moves the pins to another directory.
    pub(crate) fn move_to(&self, directory: &Path) -> Result<(), Error> {
        let held = self.held();
        for (hook, ifindex) in held.keys() {
            if let Some(path) = self.pin_path(*hook, *ifindex).filter(|path| path.exists()) {
                let new = directory.join(pin_name(*hook, *ifindex));
                std::fs::rename(&path, &new).map_err(path_error("move a link's pin to", &new))?;
            }
        }
        *self.directory() = Some(directory.to_path_buf());
        Ok(())
    }

    fn directory(&self) -> std::sync::MutexGuard<'_, Option<PathBuf>> {
        // A panic elsewhere leaves it as good as it was.
        self.directory.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn held(&self) -> std::sync::MutexGuard<'_, BTreeMap<(Hook, u32), OwnedFd>> {
        // A panic elsewhere leaves the map of descriptors as good as it was.
        self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn pin_path(&self, hook: Hook, ifindex: u32) -> Option<PathBuf> {
        self.directory().as_ref().map(|directory| directory.join(pin_name(hook, ifindex)))
    }

    pub(crate) fn attach(&self, programs: &Programs, hook: Hook, ifindex: u32) -> Result<Attachment, Error> {
        let mut held = self.held();
        if let Some(existing) = held.get(&(hook, ifindex)).and_then(|link| examine(hook, link)) {
            return Ok(existing);
        }
        // A link whose interface is gone: the same index has been given to a new one.
        held.remove(&(hook, ifindex));
        let path = self.pin_path(hook, ifindex);
        if let Some(path) = path.as_ref().filter(|path| path.exists()) {
            std::fs::remove_file(path).map_err(path_error("remove", path))?;
        }
        refuse_two_of_ours(hook, ifindex)?;
        let flags = if hook.is_xdp() { NATIVE } else { IN_FRONT };
        let link = sys::link_create(programs.get(hook.program())?, ifindex, hook.attach_type(), flags)
            .map_err(|source| attach_error(hook, ifindex, source))?;
        if let Some(path) = &path {
            sys::pin(link.as_fd(), path).map_err(path_error("pin a link at", path))?;
        }
        let attached = examine(hook, &link)
            .ok_or_else(|| attach_error(hook, ifindex, io::Error::from_raw_os_error(libc::ENODEV)))?;
        held.insert((hook, ifindex), link);
        Ok(attached)
    }

    pub(crate) fn detach(&self, hook: Hook, ifindex: u32) -> Result<(), Error> {
        if let Some(link) = self.held().remove(&(hook, ifindex)) {
            // Fails if the interface is gone: then it is detached already.
            let _gone = sys::link_detach(link.as_fd());
        }
        let Some(path) = self.pin_path(hook, ifindex) else { return Ok(()) };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(path_error("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    pub(crate) fn attachments(&self) -> Vec<Attachment> {
        self.held().iter().filter_map(|((hook, _), link)| examine(*hook, link)).collect()
    }

    /// Lets go of the links whose interface is gone.
    pub(crate) fn forget_gone(&self) -> Result<(), Error> {
        let gone: Vec<(Hook, u32)> = self
            .held()
            .iter()
            .filter(|((hook, _), link)| examine(*hook, link).is_none())
            .map(|(key, _)| *key)
            .collect();
        gone.into_iter().try_for_each(|(hook, ifindex)| self.detach(hook, ifindex))
    }
}

/// Lets go of the link of an interface that is gone.
fn remove_gone(hook: Hook, ifindex: u32, link: &OwnedFd, path: &Path) -> Result<(), Error> {
    tracing::info!(%hook, ifindex, "removed the link of an interface that is gone");
    // Detaching what is already detached fails, which is as good.
    let _gone = sys::link_detach(link.as_fd());
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(path_error("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Reads the links pinned in `directory`.
pub(crate) fn pinned(directory: &Path) -> Result<Vec<Attachment>, Error> {
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

fn pin_name(hook: Hook, ifindex: u32) -> String {
    format!("{}-{ifindex}", hook.program())
}

fn parse_name(name: &str) -> Option<(Hook, u32)> {
    let (program, ifindex) = name.rsplit_once('-')?;
    Some((Hook::of_program(program)?, ifindex.parse().ok()?))
}

/// The programs on a hook, in order of execution.
pub(crate) fn on_hook(hook: Hook, ifindex: u32) -> Result<Vec<Foreign>, Error> {
    let ids = if hook.is_xdp() { xdp_links(ifindex) } else { sys::query_tcx(ifindex, hook.attach_type()) };
    let ids = ids.map_err(|source| attach_error(hook, ifindex, source))?;
    Ok(ids.into_iter().map(|(program, link)| Foreign { name: name_of(program), program, link }).collect())
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

/// A second attach would silently run both programs: one of ours on the hook that is not this instance's is an error,
/// one of somebody else's is worth a line in the log.
fn refuse_two_of_ours(hook: Hook, ifindex: u32) -> Result<(), Error> {
    if hook.is_xdp() {
        return Ok(());
    }
    for other in on_hook(hook, ifindex)? {
        if Hook::of_program(&other.name).is_some() {
            let Foreign { name: program, program: id, link } = other;
            return Err(Error::Occupied { hook, ifindex, program, id, link });
        }
        tracing::warn!(%hook, ifindex, program = other.name, id = other.program, "another program is on this hook: ours runs first");
    }
    Ok(())
}

fn attach_error(hook: Hook, ifindex: u32, source: io::Error) -> Error {
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
        Some(libc::EINVAL) => "tcx needs Linux 6.6".to_owned(),
        _ => "see the kernel's log".to_owned(),
    };
    Error::Attach { hook, ifindex, source, remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

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
