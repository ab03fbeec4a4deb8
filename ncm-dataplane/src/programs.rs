//! The loaded programs, by name, and what the kernel says of them.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::{Error, sys};

/// What the kernel says of a loaded program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramInfo {
    /// Its name in the object.
    pub name: String,
    /// The kernel's id.
    pub id: u32,
    /// How many instructions the verifier walked through.
    pub verified_instructions: u32,
    /// Instructions after verification.
    pub instructions: u32,
    /// Bytes of machine code; 0 if the program is interpreted.
    pub machine_code_bytes: u32,
}

/// The loaded programs.
#[derive(Debug, Default)]
pub(crate) struct Programs(pub(crate) BTreeMap<String, OwnedFd>);

impl Programs {
    /// The program of that name.
    pub(crate) fn get(&self, name: &str) -> Result<BorrowedFd<'_>, Error> {
        let program = self.0.get(name).map(AsFd::as_fd);
        program.ok_or_else(|| Error::Missing { what: "program", name: name.to_owned() })
    }

    /// What the kernel says of each.
    pub(crate) fn info(&self) -> Result<Vec<ProgramInfo>, Error> {
        self.0.iter().map(|(name, fd)| describe(name, fd.as_fd())).collect()
    }
}

fn describe(name: &str, fd: BorrowedFd<'_>) -> Result<ProgramInfo, Error> {
    let info = sys::prog_info(fd)
        .map_err(|source| Error::Program { program: name.to_owned(), reason: source.to_string() })?;
    Ok(ProgramInfo {
        name: name.to_owned(),
        id: info.id,
        verified_instructions: info.verified_insns,
        instructions: info.xlated_prog_len / 8,
        machine_code_bytes: info.jited_prog_len,
    })
}

/// The kernel's name (at most 15 bytes) of the program with that id; `?` if it is gone.
pub(crate) fn name_of(id: u32) -> String {
    let info = sys::program_by_id(id).and_then(|fd| sys::prog_info(fd.as_fd()));
    let Ok(info) = info else { return "?".to_owned() };
    let bytes: Vec<u8> =
        info.name.iter().map(|byte| byte.to_ne_bytes()[0]).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
