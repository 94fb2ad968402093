//! Finds out which owed audit lines are already in the main chain of the log. An owed line records a committed change
//! of the list of peers, and the database does not yet record that the line is in the log. The line may be in the log
//! all the same, if a crash came after the line was written, but before the database recorded this. This module only
//! reads files.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;

use super::verify::{first_claim, open_segment, segments};
use crate::event::{AuditEvent, Chain};
use crate::store::OwedLine;

/// The fields of an audit log line that are needed to find an owed line: its number and its event.
#[derive(Deserialize)]
struct EventLine {
    seq: u64,
    #[serde(flatten)]
    event: AuditEvent,
}

/// Searches the main chain of the log in `folder` for the owed lines. Returns for each of them whether it is there,
/// with a number above its [`OwedLine::after_seq`]. If two owed lines are equal, each needs its own line in the log.
/// Reads only the end of the log, because no owed line can be before the lowest `after_seq`.
pub fn are_written(folder: &Path, owed: &[OwedLine]) -> io::Result<Vec<bool>> {
    let mut written = vec![false; owed.len()];
    let Some(after) = owed.iter().map(|line| line.after_seq).min() else { return Ok(written) };
    let segments = segments(folder, Chain::Main)?;
    let mut begin = 0;
    for (at, segment) in segments.iter().enumerate().rev() {
        if first_claim(&segment.path)?.is_some_and(|claim| claim.seq <= after.saturating_add(1)) {
            begin = at;
            break;
        }
    }
    for segment in &segments[begin..] {
        let file = open_segment(&segment.path, OpenOptions::new().read(true))?;
        for line in BufReader::new(file).split(b'\n') {
            // A line of a later version matches no owed line.
            let Ok(EventLine { seq, event }) = serde_json::from_slice(&line?) else { continue };
            let mut lines = owed.iter().zip(&mut written);
            let stands_for = lines.find(|(owed, written)| !**written && seq > owed.after_seq && owed.event == event);
            if let Some((_, written)) = stands_for {
                *written = true;
            }
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use paramedic_link::EndpointId;
    use tempfile::TempDir;

    use super::super::Head;
    use super::super::chain::write_line;
    use super::*;

    fn removed(peer: u8) -> AuditEvent {
        AuditEvent::PeerRemoved { peer: EndpointId::from_bytes([peer; 32]) }
    }

    fn owed(id: i64, after_seq: u64, event: AuditEvent) -> OwedLine {
        OwedLine { id, after_seq, event }
    }

    #[test]
    fn a_written_line_is_found_once_and_only_after_its_place() {
        let folder = TempDir::new().unwrap();
        let mut head = Head::GENESIS;
        for (number, peers) in [(1, [1, 2, 3]), (2, [4, 1, 5])] {
            let mut text = Vec::new();
            for peer in peers {
                head = write_line(head, Timestamp::UNIX_EPOCH, &removed(peer), &mut text).unwrap();
            }
            std::fs::write(folder.path().join(format!("{number:06}.jsonl")), text).unwrap();
        }
        let found = |owed: &[OwedLine]| are_written(folder.path(), owed).unwrap();
        assert_eq!(found(&[]), [false; 0]);
        assert_eq!(found(&[owed(1, 0, removed(2)), owed(2, 0, removed(9))]), [true, false]);
        // Lines 1 and 5 remove the same peer.
        let twice = |after| found(&[owed(1, after, removed(1)), owed(2, after, removed(1))]);
        assert_eq!((twice(0), twice(1), twice(5)), (vec![true, true], vec![true, false], vec![false, false]));
        assert_eq!(found(&[owed(1, 3, removed(3)), owed(2, 3, removed(5))]), [false, true]);
        let nowhere = folder.path().join("nowhere");
        assert_eq!(are_written(&nowhere, &[owed(1, 0, removed(1))]).unwrap(), [false]);
    }
}
