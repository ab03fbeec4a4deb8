//! What an instance has attached, as long as its agent runs: found again at its start, exchanged, and let go.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{
    Attachment, Foreign, Hook, Way, attach_error, clsact, examine, examine_filter, on_hook, parse_name,
    pin_name,
};
use crate::pin::{names, path_error};
use crate::programs::Programs;
use crate::{Error, sys};

/// `XDP_FLAGS_DRV_MODE` of `linux/if_link.h`: natively, without fallback to generic XDP.
const NATIVE: u32 = 1 << 2;
/// `BPF_F_BEFORE` of `linux/bpf.h`: without a relative program, in front of all.
const IN_FRONT: u32 = 1 << 3;

/// By what a program is attached.
#[derive(Debug)]
enum Held {
    /// A link, which is pinned.
    Link(OwnedFd),
    /// A filter, which is held by its interface.
    Filter,
}

impl Held {
    const fn is_by(&self, way: Way) -> bool {
        matches!((self, way), (Self::Link(_), Way::Tcx) | (Self::Filter, Way::Clsact))
    }
}

/// What one instance has attached.
#[derive(Debug)]
pub(crate) struct Attached {
    /// Whose filters are ours.
    instance: String,
    /// How tc programs are attached from now on.
    way: Way,
    /// Where links are pinned; `None`: what is attached goes with this process.
    directory: Mutex<Option<PathBuf>>,
    held: Mutex<BTreeMap<(Hook, u32), Held>>,
}

impl Attached {
    /// What ends with this process.
    pub(crate) fn unpinned(way: Way) -> Self {
        Self { instance: String::new(), way, directory: Mutex::new(None), held: Mutex::default() }
    }

    /// Takes over an instance's filters, and the pinned links, those of `others` too: from now on they are in `directory`. Those whose
    /// interface is gone go.
    pub(crate) fn adopt(
        instance: &str,
        way: Way,
        directory: PathBuf,
        others: &[PathBuf],
    ) -> Result<Self, Error> {
        let links = Mutex::new(Some(directory.clone()));
        let attached = Self { instance: instance.to_owned(), way, directory: links, held: Mutex::default() };
        for place in others.iter().filter(|other| **other != directory).chain([&directory]) {
            for name in names(place)? {
                attached.adopt_link(place, &name, &directory)?;
            }
        }
        for (hook, ifindex) in clsact::all(instance).map_err(Error::Filters)? {
            let before = attached.held().insert((hook, ifindex), Held::Filter);
            if let Some(link) = before {
                // Killed between the two: one of them is too many.
                attached.keep_one(hook, ifindex, link)?;
            }
        }
        Ok(attached)
    }

    fn adopt_link(&self, place: &Path, name: &str, directory: &Path) -> Result<(), Error> {
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
        self.held().insert((hook, ifindex), Held::Link(link));
        Ok(())
    }

    /// Of a link and a filter on one hook, the one goes that is not wanted.
    fn keep_one(&self, hook: Hook, ifindex: u32, link: Held) -> Result<(), Error> {
        if self.way == Way::Clsact {
            return self.let_go(hook, ifindex, &link);
        }
        let filter = self.held().insert((hook, ifindex), link);
        filter.map_or(Ok(()), |filter| self.let_go(hook, ifindex, &filter))
    }

    /// Puts these programs on all hooks, each at once.
    pub(crate) fn swap(&self, programs: &Programs) -> Result<(), Error> {
        let mut held = self.held();
        let mut gone = Vec::new();
        for ((hook, ifindex), place) in held.iter() {
            let (hook, ifindex) = (*hook, *ifindex);
            let program = programs.get(hook.program())?;
            let is_there = match place {
                Held::Link(link) => match sys::link_update(link.as_fd(), program) {
                    Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
                    updated => updated.map(|()| true).map_err(Into::into),
                },
                Held::Filter => clsact::replace(program, &self.instance, hook, ifindex),
            };
            if is_there.map_err(|refusal| attach_error(hook, ifindex, refusal))? {
                tracing::info!(%hook, ifindex, "took over the attached program");
                crate::transition::reached("swapping");
            } else {
                gone.push((hook, ifindex));
            }
        }
        for (hook, ifindex) in gone {
            if let (Some(Held::Link(link)), Some(path)) =
                (held.remove(&(hook, ifindex)), self.pin_path(hook, ifindex))
            {
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

    fn directory(&self) -> MutexGuard<'_, Option<PathBuf>> {
        // A panic elsewhere leaves it as good as it was.
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<(Hook, u32), Held>> {
        // A panic elsewhere leaves the map as good as it was.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pin_path(&self, hook: Hook, ifindex: u32) -> Option<PathBuf> {
        self.directory().as_ref().map(|directory| directory.join(pin_name(hook, ifindex)))
    }

    fn examine(&self, hook: Hook, ifindex: u32, held: &Held) -> Option<Attachment> {
        match held {
            Held::Link(link) => examine(hook, link),
            Held::Filter => examine_filter(&self.instance, hook, ifindex),
        }
    }

    /// Attaches a hook's program. One that is attached another way than is wanted now changes over: at no time there is none, and of
    /// two the first is the only one that decides.
    pub(crate) fn attach(&self, programs: &Programs, hook: Hook, ifindex: u32) -> Result<Attachment, Error> {
        let way = if hook.is_xdp() { Way::Tcx } else { self.way };
        let mut held = self.held();
        let before = held.get(&(hook, ifindex));
        let found = before.and_then(|before| self.examine(hook, ifindex, before));
        if let Some(existing) = found.filter(|_| before.is_some_and(|before| before.is_by(way))) {
            return Ok(existing);
        }
        self.refuse_two_of_ours(hook, ifindex, found.map(|found| found.program))?;
        let program = programs.get(hook.program())?;
        let new = match way {
            Way::Tcx => {
                let path = self.pin_path(hook, ifindex);
                // A link whose interface is gone: the same index has been given to a new one.
                if let Some(path) = path.as_ref().filter(|path| path.exists()) {
                    std::fs::remove_file(path).map_err(path_error("remove", path))?;
                }
                let flags = if hook.is_xdp() { NATIVE } else { IN_FRONT };
                let link = sys::link_create(program, ifindex, hook.attach_type(), flags)
                    .map_err(|source| attach_error(hook, ifindex, source.into()))?;
                if let Some(path) = &path {
                    sys::pin(link.as_fd(), path).map_err(path_error("pin a link at", path))?;
                }
                Held::Link(link)
            }
            Way::Clsact => {
                clsact::attach(program, &self.instance, hook, ifindex)
                    .map_err(|refusal| attach_error(hook, ifindex, refusal))?;
                Held::Filter
            }
        };
        let attached = self
            .examine(hook, ifindex, &new)
            .ok_or_else(|| attach_error(hook, ifindex, io::Error::from_raw_os_error(libc::ENODEV).into()))?;
        if let Some(before) = held.insert((hook, ifindex), new)
            && !before.is_by(way)
        {
            self.let_go(hook, ifindex, &before)?;
        }
        Ok(attached)
    }

    /// A second attach would silently run both programs: one of ours on the hook that is not this instance's is an error,
    /// one of somebody else's is worth a line in the log. `own` is this instance's.
    fn refuse_two_of_ours(&self, hook: Hook, ifindex: u32, own: Option<u32>) -> Result<(), Error> {
        if hook.is_xdp() {
            return Ok(());
        }
        for other in on_hook(hook, ifindex)?.into_iter().filter(|other| Some(other.program) != own) {
            let Foreign { name: program, program: id, link } = other;
            if Hook::of_program(&program).is_some() {
                return Err(Error::Occupied { hook, ifindex, program, id, link });
            }
            let who = if self.way == Way::Tcx { "ours runs first" } else { "ours runs first of all filters" };
            tracing::warn!(%hook, ifindex, program, id, "another program is on this hook: {who}");
        }
        Ok(())
    }

    pub(crate) fn detach(&self, hook: Hook, ifindex: u32) -> Result<(), Error> {
        match self.held().remove(&(hook, ifindex)) {
            Some(held) => self.let_go(hook, ifindex, &held),
            None => self.remove_pin(hook, ifindex),
        }
    }

    fn let_go(&self, hook: Hook, ifindex: u32, held: &Held) -> Result<(), Error> {
        match held {
            Held::Link(link) => {
                // Fails if the interface is gone: then it is detached already.
                let _gone = sys::link_detach(link.as_fd());
                self.remove_pin(hook, ifindex)
            }
            Held::Filter => clsact::detach(&self.instance, hook, ifindex).map_err(|source| Error::Detach {
                hook,
                ifindex,
                source,
            }),
        }
    }

    fn remove_pin(&self, hook: Hook, ifindex: u32) -> Result<(), Error> {
        let Some(path) = self.pin_path(hook, ifindex) else { return Ok(()) };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(path_error("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    pub(crate) fn attachments(&self) -> Vec<Attachment> {
        let held = self.held();
        held.iter().filter_map(|((hook, ifindex), held)| self.examine(*hook, *ifindex, held)).collect()
    }

    /// Lets go of what was on interfaces that are gone.
    pub(crate) fn forget_gone(&self) -> Result<(), Error> {
        let gone: Vec<(Hook, u32)> = self
            .held()
            .iter()
            .filter(|((hook, ifindex), held)| self.examine(*hook, *ifindex, held).is_none())
            .map(|(key, _)| *key)
            .collect();
        gone.into_iter().try_for_each(|(hook, ifindex)| self.detach(hook, ifindex))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if self.directory().is_some() {
            return;
        }
        // Links go by themselves.
        for ((hook, ifindex), held) in std::mem::take(&mut *self.held()) {
            if matches!(held, Held::Filter) {
                let _left_behind = clsact::detach(&self.instance, hook, ifindex);
            }
        }
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
