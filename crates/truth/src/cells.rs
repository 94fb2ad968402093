//! The cells of the test matrix. Each scenario file of the emulator is one cell, except those in the folder `unsteady`.

use std::path::PathBuf;

use anyhow::Context;
use emulator::Scenario;

/// A cell of the test matrix: an emulated path on which the programs are compared.
#[derive(Clone, Debug)]
pub struct Cell {
    /// The name of the scenario file without its extension.
    pub name: String,
    /// The hops and links of the path, as the scenario file describes them.
    pub scenario: Scenario,
}

/// Reads every cell of the test matrix, sorted by name.
pub fn all() -> anyhow::Result<Vec<Cell>> {
    read_all("")
}

/// Reads the scenarios of links whose rate changes during a measurement. They are not part of the test matrix.
pub fn unsteady() -> anyhow::Result<Vec<Cell>> {
    read_all("unsteady")
}

fn read_all(folder: &str) -> anyhow::Result<Vec<Cell>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../emulator/scenarios").join(folder);
    let read = Scenario::read_all(&folder)?;
    Ok(read.into_iter().map(|(name, scenario)| Cell { name, scenario }).collect())
}

/// Reads the cell with this name; fails if there is none.
pub fn named(name: &str) -> anyhow::Result<Cell> {
    let cell = all()?.into_iter().find(|cell| cell.name == name);
    cell.with_context(|| format!("no cell is named {name}; run `script/lab --list` to print the names"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unsteady_link_changes_in_both_directions() {
        let cells = unsteady().unwrap();
        assert_eq!(cells.len(), 4);
        for cell in cells {
            let changes = |phase: &str| cell.scenario.changes.iter().any(|change| change.phase == phase);
            let is_policed = cell.scenario.hops.iter().all(|hop| {
                [&hop.up, &hop.down].iter().all(|way| way.as_ref().is_some_and(|way| way.policer.is_some()))
            });
            assert!(is_policed || (changes("download") && changes("upload")), "{}", cell.name);
        }
    }
}
