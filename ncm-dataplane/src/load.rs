//! Loading the object: tables first (those that are pinned are taken over after a comparison), then programs.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use ncm_common::Plain;
use ncm_common::conversion::{Conversion, globals, maps};
use ncm_common::tables::{TABLES, TableKind, TableSpec};

use crate::log::{LogLevel, ProgramLog};
use crate::pin::path_error;
use crate::programs::Programs;
use crate::sys::{self, NewMap};
use crate::tables::{Capacities, Tables};
use crate::{Error, by_port, raw};

/// Lines of the verifier's log that an error shows: the refusal stands at the end.
const LOG_LINES: usize = 40;

/// A loaded object.
pub(crate) struct Loaded {
    pub(crate) programs: Programs,
    pub(crate) tables: Tables,
    pub(crate) log: Option<ProgramLog>,
    /// Tables of the object that are not the product's.
    pub(crate) others: BTreeMap<String, OwnedFd>,
}

/// Tables of flows that the programs are to take over, of another set.
pub(crate) struct Takeover {
    /// The set's pinned tables.
    pub(crate) old: PathBuf,
    /// How far the new set has come.
    pub(crate) phase: PathBuf,
    /// How the programs read and write the old ones.
    pub(crate) conversion: Conversion,
}

/// Loads `object`; tables are pinned in `directory`, or taken from there.
pub(crate) fn load(
    object: &[u8],
    capacities: &Capacities,
    log: LogLevel,
    directory: Option<&Path>,
    takeover: Option<&Takeover>,
) -> Result<Loaded, Error> {
    if object.is_empty() {
        return Err(Error::NoObject);
    }
    if let Some(directory) = directory {
        compare_pinned(directory, capacities)?;
        // aya would make the example of ports' tables with a description of their types. Some kernels (6.1) then refuse tables that have
        // none, as ours.
        for spec in TABLES.iter().filter(|spec| spec.kind == TableKind::LruByPort) {
            create(spec, capacities.of(spec), Some(&directory.join(spec.name)))?;
        }
    }
    let (level, is_on) = (log as u8, u8::from(takeover.is_some()));
    let conversion = takeover.map_or(Conversion::NONE, |takeover| takeover.conversion);
    let mut loader = EbpfLoader::new();
    loader
        .btf(None)
        .override_global(LogLevel::GLOBAL, &level, false)
        .override_global(globals::TRANSITION, &is_on, true)
        .override_global(globals::CONVERSION, conversion.as_bytes(), true);
    if let Some(takeover) = takeover {
        loader.map_pin_path(maps::OLD_FLOWS, takeover.old.join("FLOWS"));
        loader.map_pin_path(maps::OLD_HALF_OPEN, takeover.old.join("HALF_OPEN"));
        loader.map_pin_path(maps::PHASE, &*takeover.phase);
    }
    for spec in TABLES {
        loader.map_max_entries(spec.name, capacities.of(spec));
        if let Some(directory) = directory {
            loader.map_pin_path(spec.name, directory.join(spec.name));
        }
    }
    let mut ebpf = loader.load(object).map_err(|error| Error::Object(Box::new(error)))?;
    let mut tables = Tables::open(|spec| {
        let path = directory.map_or_else(|| PathBuf::from(spec.name), |path| path.join(spec.name));
        let fd = match ebpf.map(spec.name) {
            Some(map) => map_fd(map).map_err(path_error("open", &path))?,
            None => create(spec, capacities.of(spec), directory.is_some().then_some(path.as_path()))?,
        };
        Ok((fd, path))
    })?;
    tables.half_open = tables.half_open.of_entries(capacities.half_open());
    let programs = load_programs(&mut ebpf)?;
    let log = if log == LogLevel::Off { None } else { Some(ProgramLog::take(&mut ebpf)?) };
    let others = ebpf
        .maps()
        .filter(|(name, _)| !TABLES.iter().any(|spec| spec.name == *name))
        .filter_map(|(name, map)| Some((name.to_owned(), map_fd(map).ok()?)))
        .collect();
    Ok(Loaded { programs, tables, log, others })
}

/// aya takes whatever is pinned: so what is pinned is compared first.
fn compare_pinned(directory: &Path, capacities: &Capacities) -> Result<(), Error> {
    for spec in TABLES {
        let path = directory.join(spec.name);
        if path.exists() {
            let fd = sys::get_pinned(&path, false).map_err(path_error("open", &path))?;
            raw::check(&fd, spec, Some(capacities.of(spec)), &path)?;
        }
    }
    Ok(())
}

/// A table that no program uses is not in the object: it is created here, or opened if it is pinned.
fn create(spec: &'static TableSpec, capacity: u32, pin: Option<&Path>) -> Result<OwnedFd, Error> {
    if let Some(path) = pin.filter(|path| path.exists()) {
        return sys::get_pinned(path, false).map_err(path_error("open", path));
    }
    let table = |source| Error::Table { action: "create", table: spec.name.to_ascii_lowercase(), source };
    let fd = if spec.kind == TableKind::LruByPort {
        by_port::create_outer(spec, capacity)
    } else {
        let (key_size, value_size) = raw::sizes(spec);
        let (kind, flags) = (raw::map_type(spec.kind), raw::map_flags(spec.kind));
        sys::create_map(&NewMap { kind, key_size, value_size, max_entries: capacity, flags, inner: None })
    }
    .map_err(table)?;
    if let Some(path) = pin {
        sys::pin(fd.as_fd(), path).map_err(path_error("pin a table at", path))?;
    }
    Ok(fd)
}

fn map_fd(map: &aya::maps::Map) -> std::io::Result<OwnedFd> {
    use aya::maps::Map;
    let data = match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::DevMapHash(data)
        | Map::ArrayOfMaps(data) => data,
        _ => return Err(std::io::Error::from_raw_os_error(libc::EINVAL)),
    };
    data.fd().as_fd().try_clone_to_owned()
}

fn load_programs(ebpf: &mut Ebpf) -> Result<Programs, Error> {
    let mut loaded = BTreeMap::new();
    for (name, program) in ebpf.programs_mut() {
        let result = match program {
            Program::Xdp(program) => program
                .load()
                .and_then(|()| program.fd()?.as_fd().try_clone_to_owned().map_err(ProgramError::from)),
            Program::SchedClassifier(program) => program
                .load()
                .and_then(|()| program.fd()?.as_fd().try_clone_to_owned().map_err(ProgramError::from)),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        loaded.insert(name.to_owned(), result.map_err(|error| program_error(name, error))?);
    }
    Ok(Programs(loaded))
}

fn program_error(name: &str, error: ProgramError) -> Error {
    let program = name.to_owned();
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let text = verifier_log.to_string();
            let lines: Vec<&str> = text.lines().collect();
            let log = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
            Error::Verifier { program, log, source: io_error }
        }
        other => Error::Program { program, reason: other.to_string() },
    }
}
