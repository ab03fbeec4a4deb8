//! Where an instance's tables and links are pinned, and taking them away.
//!
//! `<bpffs>/ncm/<instance>/v<layout>/maps/<TABLE>` and `…/links/<hook>-<ifindex>`. What is pinned goes on working
//! without any process.

use std::io;
use std::path::{Path, PathBuf};

use ncm_common::tables::LAYOUT_VERSION;
use nix::mount::MsFlags;
use nix::sys::statfs;

use crate::Error;

/// The directories of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinPaths {
    bpffs: PathBuf,
    instance: PathBuf,
    layout: PathBuf,
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
        let directory = bpffs.join("ncm").join(instance);
        let layout = directory.join(format!("v{LAYOUT_VERSION}"));
        Ok(Self { bpffs: bpffs.to_path_buf(), instance: directory, layout })
    }

    /// The directory of everything that the instance has pinned, in all layouts.
    #[must_use]
    pub fn instance(&self) -> &Path {
        &self.instance
    }

    /// The directory of pinned tables.
    #[must_use]
    pub fn maps(&self) -> PathBuf {
        self.layout.join("maps")
    }

    /// The directory of pinned links.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.layout.join("links")
    }

    /// The layout versions that the instance has something pinned in.
    #[must_use]
    pub fn layouts(&self) -> Vec<u32> {
        let mut found: Vec<u32> = names(&self.instance)
            .unwrap_or_default()
            .iter()
            .filter_map(|name| name.strip_prefix('v')?.parse().ok())
            .collect();
        found.sort_unstable();
        found
    }

    /// The directories of pinned links, of all layout versions.
    pub(crate) fn links_of_all_layouts(&self) -> Vec<PathBuf> {
        let links = |layout: u32| self.instance.join(format!("v{layout}")).join("links");
        self.layouts().into_iter().map(links).collect()
    }

    /// The other layout versions of which programs are attached.
    pub(crate) fn other_layouts_in_use(&self) -> Vec<u32> {
        let links = |layout: &u32| self.instance.join(format!("v{layout}")).join("links");
        let in_use = |layout: &u32| names(&links(layout)).is_ok_and(|names| !names.is_empty());
        self.layouts().into_iter().filter(|layout| *layout != LAYOUT_VERSION && in_use(layout)).collect()
    }

    /// Removes what is pinned in this build's layout; another build's, which may be forwarding, stays.
    pub(crate) fn remove_layout(&self) -> Result<(), Error> {
        remove_tree(&self.links())?;
        remove_tree(&self.layout)?;
        // Not if another layout is there.
        let _kept = std::fs::remove_dir(&self.instance);
        Ok(())
    }

    /// Creates the directories, mounting a bpffs first where there is none.
    pub(crate) fn create(&self) -> Result<(), Error> {
        mount_bpffs(&self.bpffs)?;
        for directory in [self.maps(), self.links()] {
            std::fs::create_dir_all(&directory).map_err(path_error("create", &directory))?;
        }
        Ok(())
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

/// Removes everything that `instance` has pinned, in all layouts: its programs leave their hooks, its tables go.
/// Nothing being there is no error.
///
/// # Errors
/// [`Error::Path`] if something could not be removed, [`Error::Instance`] for an impossible name.
pub fn teardown(bpffs: &Path, instance: &str) -> Result<(), Error> {
    let paths = PinPaths::new(bpffs, instance)?;
    for layout in paths.layouts() {
        // Links first: no program runs on while its tables go.
        remove_tree(&paths.instance.join(format!("v{layout}")).join("links"))?;
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
        assert_eq!(paths.maps(), Path::new("/sys/fs/bpf/ncm/a-1/v2/maps"));
        for bad in ["", "..", "a/b", "a.b", "ä", &"x".repeat(33)] {
            assert!(matches!(PinPaths::new(bpffs, bad), Err(Error::Instance(_))), "{bad}");
        }
    }
}
