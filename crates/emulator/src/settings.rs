//! The properties of one direction of a link, as scenario files state them. Pure.

use std::time::Duration;

use serde::Deserialize;

/// The settings of one direction of a link. The default delivers every packet at once. Rates and sizes count IP packets
/// without the headers of the layer below.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectionSettings {
    /// The rate of the transmitter, in Mbit/s of IP packets; `None`: no limit.
    pub rate_mbit: Option<f64>,
    /// The capacity of the queue before the transmitter, as the time that a full queue takes to be sent at `rate_mbit`.
    /// A queue has room for at least one packet.
    pub queue_ms: Option<f64>,
    /// The capacity of the queue before the transmitter, in KiB; an alternative to `queue_ms`.
    pub queue_kib: Option<f64>,
    /// The propagation delay of every packet, in milliseconds.
    #[serde(default)]
    pub delay_ms: f64,
    /// The maximum additional delay, in milliseconds. Each packet gets an additional delay that is uniformly
    /// distributed from zero to this value.
    #[serde(default)]
    pub jitter_ms: f64,
    /// Whether jitter may change the order of packets.
    #[serde(default)]
    pub jitter_reorders: bool,
    /// The share of packets that is lost behind the transmitter, in percent. Each packet is lost independently of the
    /// others.
    #[serde(default)]
    pub loss_percent: f64,
    /// Packet loss in bursts, in addition to `loss_percent`; `None`: no bursts.
    pub burst_loss: Option<BurstLoss>,
    /// The packets that get a further delay, so that later packets overtake them; `None`: no packets.
    pub reorder: Option<Reorder>,
    /// The share of packets that is transmitted twice, in percent.
    #[serde(default)]
    pub duplicate_percent: f64,
    /// A token bucket before the queue, which drops packets instead of delaying them; `None`: no such bucket.
    pub policer: Option<Policer>,
    /// Packets larger than this are dropped, without an ICMP message; `None`: no limit. The MTU of the devices is a
    /// separate setting of the hop.
    pub drop_above_bytes: Option<usize>,
}

/// Burst loss by the Gilbert-Elliott model, which has a state without loss and a state with loss. The state may change
/// at each packet.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BurstLoss {
    /// The probability that the link enters the state with loss at a packet, in percent.
    pub enter_percent: f64,
    /// The probability that the link leaves the state with loss at a packet, in percent.
    pub leave_percent: f64,
    /// The share of packets that is lost in the state with loss, in percent.
    pub loss_percent: f64,
}

/// The packets that get a further delay, so that later packets overtake them.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reorder {
    /// The share of packets that get the further delay, in percent.
    pub percent: f64,
    /// The further delay of the packets that are to be overtaken, in milliseconds.
    pub by_ms: f64,
}

/// A token bucket that drops packets when it is empty.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policer {
    /// The rate at which the token bucket fills, in Mbit/s of IP packets.
    pub rate_mbit: f64,
    /// The size of the token bucket, in KiB.
    pub burst_kib: f64,
}

impl DirectionSettings {
    /// Checks that the settings are valid. The error names the wrong setting.
    pub fn check(&self) -> Result<(), String> {
        let shares = [
            ("loss_percent", Some(self.loss_percent)),
            ("duplicate_percent", Some(self.duplicate_percent)),
            ("reorder.percent", self.reorder.map(|reorder| reorder.percent)),
            ("burst_loss.enter_percent", self.burst_loss.map(|burst| burst.enter_percent)),
            ("burst_loss.leave_percent", self.burst_loss.map(|burst| burst.leave_percent)),
            ("burst_loss.loss_percent", self.burst_loss.map(|burst| burst.loss_percent)),
        ];
        for (name, share) in shares {
            if let Some(share) = share.filter(|share| !(0.0..=100.0).contains(share)) {
                return Err(format!("{name} = {share}: valid: 0 to 100"));
            }
        }
        let amounts = [
            ("delay_ms", Some(self.delay_ms), 0.0, 10_000.0),
            ("jitter_ms", Some(self.jitter_ms), 0.0, 10_000.0),
            ("reorder.by_ms", self.reorder.map(|reorder| reorder.by_ms), 0.001, 10_000.0),
            ("queue_ms", self.queue_ms, 0.0, 10_000.0),
            ("queue_kib", self.queue_kib, 0.0, 1e6),
            ("rate_mbit", self.rate_mbit, 0.001, 100_000.0),
            ("policer.rate_mbit", self.policer.map(|policer| policer.rate_mbit), 0.001, 100_000.0),
            ("policer.burst_kib", self.policer.map(|policer| policer.burst_kib), 1.5, 1e6),
        ];
        for (name, amount, least, most) in amounts {
            if let Some(amount) = amount.filter(|amount| !(least..=most).contains(amount)) {
                return Err(format!("{name} = {amount}: valid: {least} to {most}"));
            }
        }
        match (self.rate_mbit, self.queue_ms, self.queue_kib) {
            (_, Some(_), Some(_)) => Err("queue_ms and queue_kib: set only one of them".to_owned()),
            (Some(_), None, None) => Err("rate_mbit needs a queue: set queue_ms or queue_kib".to_owned()),
            (None, Some(_), _) | (None, _, Some(_)) => Err("a queue needs a rate: set rate_mbit".to_owned()),
            _ => Ok(()),
        }
    }

    /// The time that the transmitter needs for a packet of `bytes`, rounded up to a nanosecond.
    pub fn transmission(&self, bytes: usize) -> Duration {
        // Bits divided by bits per microsecond.
        self.rate_mbit.map_or(Duration::ZERO, |mbit| nanoseconds((bytes * 8) as f64 * 1000.0 / mbit))
    }

    /// The capacity of the queue in bytes; `None` if no rate is set.
    pub fn queue_bytes(&self) -> Option<usize> {
        let rate = self.rate_mbit?;
        let of_time = self.queue_ms.map(|ms| rate * 125.0 * ms);
        of_time.or(self.queue_kib.map(|kib| kib * 1024.0)).map(|bytes| bytes as usize)
    }

    /// The propagation delay, which is the minimum delay behind the transmitter.
    pub fn delay(&self) -> Duration {
        milliseconds(self.delay_ms)
    }
}

/// Converts milliseconds to a [`Duration`].
pub(crate) fn milliseconds(ms: f64) -> Duration {
    nanoseconds(ms * 1e6)
}

fn nanoseconds(ns: f64) -> Duration {
    Duration::from_nanos(ns.ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_describe_no_link_are_refused_by_name() {
        let refused = |settings: DirectionSettings| settings.check().unwrap_err();
        let rate = |mbit| DirectionSettings { rate_mbit: Some(mbit), ..Default::default() };
        assert!(refused(rate(10.0)).contains("queue_ms"));
        assert!(refused(rate(0.0)).contains("rate_mbit = 0"));
        assert!(refused(DirectionSettings { queue_ms: Some(5.0), ..Default::default() }).contains("rate_mbit"));
        let both = DirectionSettings { queue_ms: Some(5.0), queue_kib: Some(5.0), ..rate(1.0) };
        assert!(refused(both).contains("one of them"));
        assert!(refused(DirectionSettings { loss_percent: 101.0, ..Default::default() }).contains("0 to 100"));
        assert!(refused(DirectionSettings { delay_ms: -1.0, ..Default::default() }).contains("delay_ms"));
        assert!(refused(DirectionSettings { delay_ms: f64::NAN, ..Default::default() }).contains("delay_ms"));
        DirectionSettings::default().check().unwrap();
    }

    #[test]
    fn a_packet_takes_its_bits_divided_by_the_rate() {
        let link = DirectionSettings { rate_mbit: Some(1000.0), queue_ms: Some(10.0), ..Default::default() };
        assert_eq!(link.transmission(1500), Duration::from_micros(12));
        assert_eq!(link.queue_bytes(), Some(1_250_000));
        let slow = DirectionSettings { rate_mbit: Some(37.0), ..Default::default() };
        assert_eq!(slow.transmission(1500), Duration::from_nanos(324_325), "rounded up");
    }
}
