//! The name of a history: it stays the same as long as the journal goes on, so that versions mean the same after a restart.

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::path::Path;

/// Its file, beside the journal's.
const NAME: &str = "history";

/// A number that nobody had before, and not 0.
pub(crate) fn new() -> u64 {
    RandomState::new().build_hasher().finish() | 1
}

/// The name of the history that the journal in a directory tells; a new one unless it `goes_on`.
pub(crate) fn of(directory: &Path, goes_on: bool) -> u64 {
    if goes_on && let Some(known) = read(directory) {
        return known;
    }
    let name = new();
    if let Err(error) = write(directory, name) {
        tracing::warn!(%error, "the name of the journal's history cannot be kept: whoever follows it begins anew after a restart");
    }
    name
}

fn read(directory: &Path) -> Option<u64> {
    let text = fs::read_to_string(directory.join(NAME)).ok()?;
    u64::from_str_radix(text.trim_end(), 16).ok().filter(|name| *name != 0)
}

fn write(directory: &Path, name: u64) -> io::Result<()> {
    // An old name must not outlive the journal that it was of.
    match fs::remove_file(directory.join(NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => File::open(directory)?.sync_all()?,
    }
    let unfinished = directory.join(format!("{NAME}.new"));
    let mut file = File::create(&unfinished)?;
    writeln!(file, "{name:016x}")?;
    file.sync_all()?;
    fs::rename(&unfinished, directory.join(NAME))?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_keeps_its_name_as_long_as_the_journal_goes_on() {
        let directory = std::env::temp_dir().join(format!("ncm-history-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let first = of(&directory, false);
        assert_eq!(of(&directory, true), first);
        let second = of(&directory, false);
        assert_ne!(second, first);
        assert_eq!(of(&directory, true), second);
        fs::write(directory.join(NAME), "no name").expect("can be written");
        assert_ne!(of(&directory, true), second);
        fs::remove_dir_all(directory).expect("can be removed");
    }
}
