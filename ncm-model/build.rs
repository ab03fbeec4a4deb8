//! Generates the types of the wire contract from `proto/alcor`, without `protoc`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost_build::Config;

fn main() -> Result<(), Box<dyn Error>> {
    let protos = Path::new("../proto");
    println!("cargo::rerun-if-changed=../proto/alcor");
    let mut files = Vec::new();
    for entry in fs::read_dir(protos.join("alcor/schema"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    files.sort();
    let mut compiler = protox::Compiler::new([protos])?;
    compiler.include_imports(true).open_files(files)?;
    let output = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(output.join("alcor.bin"), compiler.encode_file_descriptor_set())?;
    // Messages are kept and compared by the order of their keys: ordered maps make encodings reproducible.
    Config::new().btree_map(["."]).out_dir(&output).compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
