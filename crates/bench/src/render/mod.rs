//! Renders a record as pages and plots. Pure: it returns text, and reads and writes no file.

#[cfg(test)]
pub(crate) mod example;
mod markdown;
mod numbers;
mod svg;

use crate::cells::Group;
use crate::record::{CellRecord, Record};

/// All files of a record, each with its name and text: the page, and a plot for each group.
pub(crate) fn files(record: &Record) -> Vec<(String, String)> {
    let plots = groups(record).into_iter().filter_map(|(group, cells)| {
        let plot = svg::plot(group.title(), &bars(&cells))?;
        Some((plot_name(group), plot))
    });
    std::iter::once(("README.md".to_owned(), markdown::page(record))).chain(plots).collect()
}

/// The groups that have cells in the record, each with its cells.
fn groups(record: &Record) -> Vec<(Group, Vec<&CellRecord>)> {
    let of = |group| record.cells.iter().filter(|found| found.cell.group == group).collect::<Vec<_>>();
    Group::ALL.into_iter().map(|group| (group, of(group))).filter(|(_, cells)| !cells.is_empty()).collect()
}

pub(crate) fn plot_name(group: Group) -> String {
    format!("{}.svg", group.id())
}

/// The bars of a plot: one entry for each cell that has results.
fn bars(cells: &[&CellRecord]) -> Vec<svg::Bars> {
    let bars = |found: &&CellRecord| {
        Some(svg::Bars {
            label: found.cell.label(),
            theirs: found.theirs(|reading| reading.bps)?,
            ours: found.ours(|reading| reading.bps)?,
            ratio: found.ratio(|reading| reading.bps)?,
        })
    };
    cells.iter().filter_map(bars).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_with_figures_has_a_plot_that_the_page_shows() {
        let record = example::record();
        let files = files(&record);
        let page = &files[0].1;
        assert_eq!(files[0].0, "README.md");
        assert_eq!(files.len() - 1, Group::ALL.len() - 1, "all but the cell that nobody asked for");
        for (name, plot) in &files[1..] {
            assert!(page.contains(&format!("]({name})")), "{name} is not shown");
            assert!(plot.starts_with("<svg ") && plot.trim_end().ends_with("</svg>"), "{name}");
        }
    }

    #[test]
    fn a_record_is_rendered_the_same_from_its_file() {
        let record = example::record();
        let text = serde_json::to_string(&record).unwrap();
        let read: Record = serde_json::from_str(&text).unwrap();
        assert_eq!(files(&read), files(&record));
    }

    #[test]
    fn cells_that_failed_are_told_and_not_drawn() {
        let mut record = example::record();
        for found in &mut record.cells {
            found.pairs.clear();
            found.failures = vec!["ours: no such engine".to_owned()];
        }
        let files = files(&record);
        assert_eq!(files.len(), 1);
        assert!(files[0].1.contains("no such engine") && !files[0].1.contains(".svg"));
    }
}
