//! Reading an instance's pinned tables, whether or not its agent runs.

use std::path::Path;

use ncm_common::tables::LAYOUT_VERSION;

use crate::attach::{self, Attachment};
use crate::pin::{PinPaths, path_error};
use crate::tables::Tables;
use crate::{Error, sys};

/// The pinned tables of an instance, opened for reading only.
#[derive(Debug)]
pub struct Reader {
    paths: PinPaths,
    tables: Tables,
}

impl Reader {
    /// Opens what `instance` has pinned below the bpffs at `bpffs`.
    ///
    /// # Errors
    /// [`Error::NotLoaded`] if nothing is pinned, [`Error::Layout`] if a table is not what this version reads.
    pub fn open(bpffs: &Path, instance: &str) -> Result<Self, Error> {
        Self::open_as(bpffs, instance, true)
    }

    /// The same with tables that can be written too: for tests and benchmarks, which fill them beside a running agent.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_to_write(bpffs: &Path, instance: &str) -> Result<Self, Error> {
        Self::open_as(bpffs, instance, false)
    }

    fn open_as(bpffs: &Path, instance: &str, read_only: bool) -> Result<Self, Error> {
        let paths = PinPaths::new(bpffs, instance)?;
        let Some(set) = paths.current()?.filter(|set| set.layout == LAYOUT_VERSION) else {
            return Err(Error::NotLoaded {
                instance: instance.to_owned(),
                path: paths.instance().to_path_buf(),
                wanted: LAYOUT_VERSION,
                found: paths.layouts(),
            });
        };
        let maps = set.maps();
        let tables = Tables::open(|spec| {
            let path = maps.join(spec.name);
            let fd = sys::get_pinned(&path, read_only).map_err(path_error("open", &path))?;
            Ok((fd, path))
        })?;
        Ok(Self { paths, tables })
    }

    /// The tables; writing to them fails if they were opened for reading.
    #[must_use]
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Where the instance's programs are attached.
    ///
    /// # Errors
    /// As [`attached`].
    pub fn attachments(&self) -> Result<Vec<Attachment>, Error> {
        attached(&self.paths)
    }
}

/// Where an instance's programs are attached, whatever the layout of their tables.
///
/// # Errors
/// [`Error::Path`] if a pinned link cannot be opened, [`Error::Filters`] if the interfaces' filters cannot be listed.
pub fn attached(paths: &PinPaths) -> Result<Vec<Attachment>, Error> {
    attach::of_instance(paths)
}
