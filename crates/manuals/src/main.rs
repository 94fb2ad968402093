//! Writes the man pages of `reflector` and `packetparamedic`, one for each command, into the folder that the first
//! argument names.

#![forbid(unsafe_code)]

use std::io::{Error, ErrorKind};
use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "usage: manuals FOLDER"))?;
    for command in [reflector::cli::command(), packetparamedic::cli::command()] {
        clap_mangen::generate_to(command, &folder)?;
    }
    Ok(())
}
