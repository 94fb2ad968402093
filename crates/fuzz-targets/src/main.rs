//! Prints the names of the fuzz targets, or writes their seeds and past crashes as files for libFuzzer. `script/fuzz`
//! calls this program.

#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};
use fuzz_targets::{TARGETS, crashes, seeds};

fn main() -> anyhow::Result<()> {
    let arguments = std::env::args_os().skip(1).collect::<Vec<_>>();
    match arguments.as_slice() {
        [command] if command == "list" => TARGETS.iter().for_each(|target| println!("{}", target.name)),
        [command, folder] if command == "seeds" => {
            for target in TARGETS {
                let folder = PathBuf::from(folder).join(target.name);
                fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
                for (seed, kind) in [(seeds(target), "seed"), (crashes(target), "crash")]
                    .into_iter()
                    .flat_map(|(seeds, kind)| seeds.into_iter().map(move |seed| (seed, kind)))
                {
                    let path = folder.join(format!("{kind}-{}", seed.name));
                    fs::write(&path, seed.bytes).with_context(|| format!("cannot write {}", path.display()))?;
                }
            }
        }
        _ => bail!("usage: fuzz-targets list | fuzz-targets seeds FOLDER"),
    }
    Ok(())
}
