//! The cells of the matrix: the scenario files of the emulator.

use std::path::PathBuf;

use anyhow::Context;
use emulator::Scenario;

/// A cell of the matrix.
#[derive(Clone, Debug)]
pub struct Cell {
    /// The name: that of the scenario file without its ending.
    pub name: String,
    /// What the file states.
    pub scenario: Scenario,
}

/// Every cell, in order.
pub fn all() -> anyhow::Result<Vec<Cell>> {
    read_all("")
}

/// Links whose rate changes while a direction is measured. They are not part of the matrix.
pub fn unsteady() -> anyhow::Result<Vec<Cell>> {
    read_all("unsteady")
}

fn read_all(folder: &str) -> anyhow::Result<Vec<Cell>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../emulator/scenarios").join(folder);
    let read = Scenario::read_all(&folder)?;
    Ok(read.into_iter().map(|(name, scenario)| Cell { name, scenario }).collect())
}

/// The cell with this name.
pub fn named(name: &str) -> anyhow::Result<Cell> {
    let cell = all()?.into_iter().find(|cell| cell.name == name);
    cell.with_context(|| format!("no cell is named {name}"))
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
