//! Where an instance's tables and links are pinned, and taking them away.
//!
//! A *set* of tables is in `<bpffs>/ncm/<instance>/v<layout>/maps/<TABLE>`, with the links of the programs that use it in
//! `…/links/<hook>-<ifindex>`. What is pinned goes on working without any process.
//!
//! There is one set, but while another takes its place: one of another layout, or of tables of other sizes. That is in
//! `v<layout>-<number>` until it is alone, and `…/phase` says how far it has come. `…/fields` says what a set's tables are made of.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use ncm_common::conversion::phases;
use ncm_common::tables::LAYOUT_VERSION;
use nix::mount::MsFlags;
use nix::sys::statfs;

use crate::{Error, sys};

/// The directories of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinPaths {
    bpffs: PathBuf,
    instance: PathBuf,
}

/// A set of tables. Ordered by number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Set {
    pub(crate) number: u32,
    pub(crate) layout: u32,
    path: PathBuf,
}

impl Set {
    fn new(instance: &Path, layout: u32, number: u32) -> Self {
        let set = Self { number, layout, path: PathBuf::new() };
        Self { path: instance.join(set.name()), ..set }
    }

    fn of_name(instance: &Path, name: &str) -> Option<Self> {
        let rest = name.strip_prefix('v')?;
        let (layout, number) = match rest.split_once('-') {
            Some((layout, number)) => (layout, number.parse().ok().filter(|number| *number != 0)?),
            None => (rest, 0),
        };
        let set = Self::new(instance, layout.parse().ok()?, number);
        set.path.ends_with(name).then_some(set)
    }

    fn name(&self) -> String {
        let Self { layout, number, .. } = self;
        if *number == 0 { format!("v{layout}") } else { format!("v{layout}-{number}") }
    }

    /// The directory of pinned tables.
    pub(crate) fn maps(&self) -> PathBuf {
        self.path.join("maps")
    }

    /// The directory of pinned links.
    pub(crate) fn links(&self) -> PathBuf {
        self.path.join("links")
    }

    /// Where it is said how far the set has come.
    pub(crate) fn phase(&self) -> PathBuf {
        self.path.join("phase")
    }

    /// Where it is said what the tables are made of.
    pub(crate) fn fields(&self) -> PathBuf {
        self.path.join("fields")
    }

    /// Whether its tables are the ones by which packets are forwarded. Sets of versions that had but one say nothing of it.
    ///
    /// # Errors
    /// [`Error::Path`] if it cannot be read: a set that is in use must not be taken for one that is not.
    pub(crate) fn is_in_use(&self) -> Result<bool, Error> {
        let path = self.phase();
        let map = match sys::get_pinned(&path, true) {
            Ok(map) => map,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(self.maps().is_dir()),
            Err(error) => return Err(path_error("open", &path)(error)),
        };
        let mut phase = [0; 4];
        sys::lookup(map.as_fd(), &[0; 4], &mut phase).map_err(path_error("read", &path))?;
        Ok(u32::from_ne_bytes(phase) == phases::IN_USE)
    }

    /// Gives the set the name that sets have while there is one alone.
    pub(crate) fn rename_alone(&mut self) -> Result<(), Error> {
        let Some(instance) = self.path.parent() else { return Ok(()) };
        let alone = Self::new(instance, self.layout, 0);
        if !alone.path.exists() {
            std::fs::rename(&self.path, &alone.path).map_err(path_error("rename", &self.path))?;
            *self = alone;
        }
        Ok(())
    }

    /// Creates the directories.
    pub(crate) fn create(&self) -> Result<(), Error> {
        for directory in [self.maps(), self.links()] {
            std::fs::create_dir_all(&directory).map_err(path_error("create", &directory))?;
        }
        Ok(())
    }

    /// Removes all of it. Links first: no program runs on while its tables go.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        remove_tree(&self.links())?;
        remove_tree(&self.path)
    }
}

impl PinPaths {
    /// The directories of `instance` below the bpffs mounted at `bpffs`; nothing is created.
    ///
    /// # Errors
    /// [`Error::Instance`] if the name cannot be part of a path.
    pub fn new(bpffs: &Path, instance: &str) -> Result<Self, Error> {
        // bpffs refuses names with a dot.
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if instance.is_empty() || instance.len() > 32 || !instance.chars().all(allowed) {
            return Err(Error::Instance(instance.to_owned()));
        }
        Ok(Self { bpffs: bpffs.to_path_buf(), instance: bpffs.join("ncm").join(instance) })
    }

    /// The directory of everything that the instance has pinned, in all layouts.
    #[must_use]
    pub fn instance(&self) -> &Path {
        &self.instance
    }

    /// The instance's name.
    pub(crate) fn name(&self) -> &str {
        self.instance.file_name().and_then(std::ffi::OsStr::to_str).unwrap_or_default()
    }

    /// The sets of tables, by number.
    pub(crate) fn sets(&self) -> Result<Vec<Set>, Error> {
        let names = names(&self.instance)?;
        let mut sets: Vec<Set> = names.iter().filter_map(|name| Set::of_name(&self.instance, name)).collect();
        sets.sort_unstable();
        Ok(sets)
    }

    /// The set by which packets are forwarded.
    pub(crate) fn current(&self) -> Result<Option<Set>, Error> {
        for set in self.sets()?.into_iter().rev() {
            if set.is_in_use()? {
                return Ok(Some(set));
            }
        }
        Ok(None)
    }

    /// A set of this version's, with a number that none has.
    pub(crate) fn new_set(&self) -> Result<Set, Error> {
        let number = self.sets()?.last().map_or(0, |last| last.number + 1);
        Ok(Set::new(&self.instance, LAYOUT_VERSION, number))
    }

    /// The layout versions that the instance has something pinned in.
    #[must_use]
    pub fn layouts(&self) -> Vec<u32> {
        let mut found: Vec<u32> = self.sets().unwrap_or_default().iter().map(|set| set.layout).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The directories of pinned links, of all sets.
    pub(crate) fn links(&self) -> Result<Vec<PathBuf>, Error> {
        Ok(self.sets()?.iter().map(Set::links).collect())
    }

    /// Removes the instance's directory if nothing is left in it.
    pub(crate) fn remove_if_empty(&self) {
        let _kept = std::fs::remove_dir(&self.instance);
    }

    /// Sees to it that there is a bpffs, mounting one where there is none.
    pub(crate) fn mount(&self) -> Result<(), Error> {
        mount_bpffs(&self.bpffs)
    }
}

impl std::fmt::Display for Set {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.name())
    }
}

/// Mounts a bpffs at `path` unless there is one.
fn mount_bpffs(path: &Path) -> Result<(), Error> {
    let is_bpffs = || statfs::statfs(path).is_ok_and(|found| found.filesystem_type() == statfs::BPF_FS_MAGIC);
    let failed = |source| Error::NoBpffs { path: path.to_path_buf(), source };
    if is_bpffs() {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(failed)?;
    nix::mount::mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(|errno| failed(errno.into()))?;
    tracing::info!(path = %path.display(), "mounted a bpffs");
    Ok(())
}

/// Removes everything that `instance` has attached and pinned, in all layouts: its programs leave their hooks, its tables go.
/// Nothing being there is no error.
///
/// # Errors
/// [`Error::Path`] or [`Error::Detach`] if something could not be removed, [`Error::Instance`] for an impossible name.
pub fn teardown(bpffs: &Path, instance: &str) -> Result<(), Error> {
    let paths = PinPaths::new(bpffs, instance)?;
    crate::attach::remove_filters(instance)?;
    for links in paths.links()? {
        // Links first: no program runs on while its tables go.
        remove_tree(&links)?;
    }
    remove_tree(&paths.instance)?;
    // Not if another instance is there.
    let _kept = std::fs::remove_dir(bpffs.join("ncm"));
    Ok(())
}

/// Removes a directory of bpffs with all below it; not being there is no error.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(path_error("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The names in a directory; none if it does not exist.
pub(crate) fn names(directory: &Path) -> Result<Vec<String>, Error> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(path_error("list", directory)(error)),
    };
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

/// Makes an [`Error::Path`] of an I/O error.
pub(crate) fn path_error<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + 'a {
    move |source| Error::Path { action, path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_name_is_part_of_a_path_and_nothing_more() {
        let bpffs = Path::new("/sys/fs/bpf");
        let paths = PinPaths::new(bpffs, "a-1").expect("a good name");
        assert_eq!(paths.instance(), Path::new("/sys/fs/bpf/ncm/a-1"));
        for bad in ["", "..", "a/b", "a.b", "ä", &"x".repeat(33)] {
            assert!(matches!(PinPaths::new(bpffs, bad), Err(Error::Instance(_))), "{bad}");
        }
    }

    #[test]
    fn sets_are_told_by_their_names_and_nothing_else_is_one() {
        let instance = Path::new("/sys/fs/bpf/ncm/a");
        for (name, layout, number) in [("v2", 2, 0), ("v3-1", 3, 1), ("v2-17", 2, 17)] {
            let set = Set::of_name(instance, name).expect("a set");
            assert_eq!((set.layout, set.number), (layout, number));
            assert_eq!(set.maps(), instance.join(name).join("maps"));
        }
        for other in ["", "v", "2", "vx", "v2-", "v2-0", "v2-x", "v02", "v2-01", "v2-1-1"] {
            assert_eq!(Set::of_name(instance, other), None, "{other}");
        }
    }
}
