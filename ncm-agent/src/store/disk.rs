//! What the journal asks of a directory: few enough steps that a test can cut the power between any two of them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{AccessFlags, access};

/// A directory of files. What is not made durable by [`Append::sync`] (contents) and [`Disk::sync`] (names) may be gone, or be there
/// in part, after a power cut.
pub(super) trait Disk: Send {
    /// Names of the files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// A file's contents, and how many bytes there are.
    fn read(&self, name: &str) -> io::Result<(Box<dyn Read + Send>, u64)>;
    /// A new file; one of that name that there is loses its contents.
    fn create(&mut self, name: &str) -> io::Result<Box<dyn Append>>;
    /// A file to go on with after so many bytes of it; the rest is cut off.
    fn reopen(&mut self, name: &str, length: u64) -> io::Result<Box<dyn Append>>;
    /// Renames a file, over another if need be.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Makes names durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// A file that grows.
pub(super) trait Append: Send {
    /// Adds these parts, one after the other.
    fn append(&mut self, parts: &[&[u8]]) -> io::Result<()>;
    /// Cuts the file to a length that it had.
    fn cut(&mut self, length: u64) -> io::Result<()>;
    /// Makes the contents durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// A directory of the host. It is locked for as long as this lives.
#[derive(Debug)]
pub(super) struct HostDisk {
    path: PathBuf,
    handle: Flock<File>,
}

impl HostDisk {
    /// Opens a directory, made if missing. `None`: somebody else has it.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        fs::create_dir_all(path)?;
        // Found out now, and not when tables and programs are there.
        access(path, AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK)?;
        match Flock::lock(File::open(path)?, FlockArg::LockExclusiveNonblock) {
            Ok(handle) => Ok(Some(Self { path: path.to_owned(), handle })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno.into()),
        }
    }
}

/// What is in the journal is the tenants' business.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

impl Disk for HostDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn read(&self, name: &str) -> io::Result<(Box<dyn Read + Send>, u64)> {
        let file = File::open(self.path.join(name))?;
        let length = file.metadata()?.len();
        Ok((Box::new(io::BufReader::with_capacity(1 << 18, file)), length))
    }

    fn create(&mut self, name: &str) -> io::Result<Box<dyn Append>> {
        let file = options().write(true).create(true).truncate(true).open(self.path.join(name))?;
        Ok(Box::new(HostFile { file, length: 0 }))
    }

    fn reopen(&mut self, name: &str, length: u64) -> io::Result<Box<dyn Append>> {
        let file = options().write(true).open(self.path.join(name))?;
        let mut file = HostFile { file, length };
        file.cut(length)?;
        Ok(Box::new(file))
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.handle.sync_all()
    }
}

struct HostFile {
    file: File,
    /// What is behind it was written in vain.
    length: u64,
}

impl Append for HostFile {
    fn append(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut left = &mut slices[..];
        // `write_all_vectored` is not stable.
        while !left.is_empty() {
            match self.file.write_vectored(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.length += written as u64;
                    IoSlice::advance_slices(&mut left, written);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        use std::io::Seek;
        self.file.set_len(length)?;
        self.file.seek(io::SeekFrom::Start(length))?;
        self.length = length;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}
