//! Decides when the samples of a phase are sent to the appliance. Pure: no I/O, no clock.
//!
//! During a download, the messages with samples take a part of the rate that the phase measures. On a slow line,
//! samples wait, so that one message carries many of them.

use paramedic_link::measurement::Sample;
use paramedic_link::message::{MAX_SAMPLES, ToAppliance};
use paramedic_link::test_spec::{Direction, Load};

/// Samples wait while their messages would take more than 1/200 of the bytes of the download.
const PARTS: u64 = 200;
/// Bytes that a message takes on the line, without its samples: the rest of its text, and the headers of TLS, TCP and
/// IP. [`SAMPLE_BYTES`] is what each sample adds.
const MESSAGE_BYTES: u64 = 160;
const SAMPLE_BYTES: u64 = 36;

/// In a phase that loads both directions, at most this many samples of each direction wait: those of one second. The
/// appliance shows the rate of the upload from them, so they must not wait longer.
const MAX_SAMPLES_OF_BOTH: usize = 10;

/// The samples of the running phase that are not sent yet.
#[derive(Default)]
pub(super) struct SampleQueue {
    /// The samples that wait: those of the download, then those of the upload.
    waiting: [Vec<Sample>; 2],
    /// Bytes of the download since samples were last taken.
    bytes: u64,
}

impl SampleQueue {
    /// Adds a sample.
    pub(super) fn push(&mut self, direction: Direction, sample: Sample) {
        self.waiting[direction as usize].push(sample);
        if direction == Direction::Download {
            self.bytes = self.bytes.saturating_add(sample.bytes);
        }
    }

    /// Whether one more sample might not fit into a message.
    pub(super) fn is_full(&self) -> bool {
        self.longest() >= MAX_SAMPLES
    }

    /// Whether the samples must be sent now, in a phase with `load`.
    pub(super) fn is_due(&self, load: Load) -> bool {
        let most = match load {
            Load::Download => MAX_SAMPLES,
            Load::Bidir => MAX_SAMPLES_OF_BOTH,
            Load::Idle | Load::Upload | Load::Unknown => return true,
        };
        let cost = |samples: &Vec<Sample>| match samples.len() as u64 {
            0 => 0,
            samples => MESSAGE_BYTES + SAMPLE_BYTES * samples,
        };
        let cost = self.waiting.iter().map(cost).sum::<u64>();
        self.longest() >= most || cost * PARTS <= self.bytes
    }

    /// Takes all samples, as messages about `phase`.
    pub(super) fn take(&mut self, phase: u8) -> Vec<ToAppliance> {
        let Self { waiting, .. } = std::mem::take(self);
        let taken = [Direction::Download, Direction::Upload].into_iter().zip(waiting);
        let message = |(direction, samples)| ToAppliance::Samples { phase, direction, samples };
        taken.filter(|(_, samples)| !samples.is_empty()).map(message).collect()
    }

    fn longest(&self) -> usize {
        self.waiting.iter().map(Vec::len).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use paramedic_link::frame;

    use super::*;

    /// Bytes of the headers of IPv6, TCP with timestamps, and TLS with a tag, once for each segment of a message.
    const HEADERS: usize = 40 + 32 + 22;

    /// The messages of a simulated phase with `tenths` samples in each direction of `load`, at a rate of `bps`.
    fn messages(load: Load, bps: u64, tenths: u64) -> Vec<ToAppliance> {
        let mut queue = SampleQueue::default();
        let mut messages = vec![];
        for tenth in 1..=tenths {
            for direction in load.directions() {
                queue.push(*direction, Sample { at_us: tenth * 100_000 + 87, bytes: bps / 80 });
            }
            if queue.is_due(load) {
                messages.extend(queue.take(3));
            }
        }
        messages.extend(queue.take(3));
        messages
    }

    fn samples(messages: &[ToAppliance], of: Direction) -> Vec<u64> {
        let times = |message: &ToAppliance| match message {
            ToAppliance::Samples { phase: 3, direction, samples } if *direction == of => {
                samples.iter().map(|sample| sample.at_us).collect()
            }
            _ => vec![],
        };
        messages.iter().flat_map(times).collect()
    }

    #[test]
    fn every_sample_is_sent_once_and_in_order() {
        for load in [Load::Download, Load::Upload, Load::Bidir] {
            for bps in [0, 500_000, 1_000_000, 20_000_000, u64::MAX / 100] {
                let messages = messages(load, bps, 137);
                for direction in load.directions() {
                    let expected = (1..=137).map(|tenth| tenth * 100_000 + 87);
                    assert!(expected.eq(samples(&messages, *direction)), "{load:?} {bps}");
                }
            }
        }
    }

    #[test]
    fn messages_take_at_most_a_two_hundredth_of_a_download_from_one_megabit() {
        for bps in [1_000_000, 2_000_000, 4_000_000, 10_000_000, 1_000_000_000] {
            let messages = messages(Load::Download, bps, 100);
            let segments = |len: usize| len.div_ceil(1400) * HEADERS + len;
            let bytes = messages.iter().map(|message| segments(frame::encode(message).unwrap().len())).sum::<usize>();
            let limit = bps as usize / 8 * 10 / 200;
            assert!(bytes <= limit, "{bps}: {bytes} of {limit}");
        }
        assert_eq!(messages(Load::Download, 10_000_000, 100).len(), 100, "a fast line delays no sample");
    }

    #[test]
    fn samples_of_an_upload_wait_for_a_second_at_most() {
        assert_eq!(messages(Load::Upload, 500_000, 100).len(), 100);
        let both = messages(Load::Bidir, 500_000, 100);
        let longest = both.iter().map(|message| samples(std::slice::from_ref(message), Direction::Upload).len()).max();
        assert_eq!(longest, Some(10));
    }

    #[test]
    fn a_download_that_stands_still_fills_messages() {
        let stalled = messages(Load::Download, 0, 130);
        let lengths = stalled.iter().map(|message| samples(std::slice::from_ref(message), Direction::Download).len());
        assert!(lengths.eq([64, 64, 2]));
    }
}
