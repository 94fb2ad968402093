//! Computes how busy the line of the default route is, from the counters of its interface. Pure: no I/O, no clock.

use std::time::Duration;

/// The byte counters of a network interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceCounters {
    /// The number of bytes that the interface has received.
    pub received: u64,
    /// The number of bytes that the interface has sent.
    pub sent: u64,
}

/// The rates that a line can carry, in bits per second. A rate is absent if it is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineCapacity {
    /// The rate of the line towards this device.
    pub download_bps: Option<u64>,
    /// The rate of the line away from this device.
    pub upload_bps: Option<u64>,
}

/// The share of the line that was in use in the busier direction: 0 for an idle line, 1 for a full one. `before` and
/// `after` are the counters at the start and at the end of the time `over`. `None` if neither direction has a known
/// capacity, or if the counters were reset.
pub fn share_in_use(
    before: InterfaceCounters,
    after: InterfaceCounters,
    over: Duration,
    capacity: LineCapacity,
) -> Option<f64> {
    let share = |before: u64, after: u64, capacity: Option<u64>| {
        let capacity = capacity.filter(|bps| *bps > 0)?;
        let bits = after.checked_sub(before)? as f64 * 8.0;
        Some(bits / over.as_secs_f64() / capacity as f64)
    };
    let down = share(before.received, after.received, capacity.download_bps);
    let up = share(before.sent, after.sent, capacity.upload_bps);
    let share = down.into_iter().chain(up).reduce(f64::max)?;
    share.is_finite().then_some(share)
}

/// The interface of the IPv4 default route with the lowest metric. `routes` is the text of /proc/net/route.
pub fn default_interface(routes: &str) -> Option<&str> {
    // The fields of a line: interface, destination, gateway, flags, reference count, use, metric, mask. The addresses
    // are hexadecimal.
    let default = |line: &'_ str| {
        let fields = line.split_whitespace().collect::<Vec<_>>();
        let [_, "00000000", .., mask, _, _, _] = fields[..] else { return None };
        let metric = fields.get(6)?.parse::<u32>().ok()?;
        (mask == "00000000").then_some(metric)
    };
    let routes = routes.lines().skip(1).filter_map(|line| Some((default(line)?, line.split_whitespace().next()?)));
    routes.min().map(|(_, interface)| interface)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_of_the_default_route_with_the_lowest_metric_counts() {
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let route = |name: &str, to: &str, metric: u32, mask: &str| {
            format!("{name}\t{to}\t0102A8C0\t0003\t0\t0\t{metric}\t{mask}\t0\t0\t0\n")
        };
        let table = [
            head.to_owned(),
            route("wlan0", "00000000", 600, "00000000"),
            route("eth0", "00000000", 100, "00000000"),
            route("tun0", "0002A8C0", 0, "00FFFFFF"),
            "truncated\t00000000".to_owned(),
        ];
        assert_eq!(default_interface(&table.concat()), Some("eth0"));
        assert_eq!(default_interface(head), None);
        assert_eq!(default_interface(""), None);
    }

    #[test]
    fn the_direction_that_is_used_more_counts() {
        let before = InterfaceCounters { received: 1_000_000, sent: 1_000_000 };
        let after = InterfaceCounters { received: 2_000_000, sent: 1_500_000 };
        let second = Duration::from_secs(1);
        let capacity = |down, up| LineCapacity { download_bps: down, upload_bps: up };
        let share = |capacity| share_in_use(before, after, second, capacity);
        assert_eq!(share(capacity(Some(80_000_000), Some(8_000_000))), Some(0.5));
        assert_eq!(share(capacity(Some(80_000_000), None)), Some(0.1));
        assert_eq!(share(capacity(None, Some(0))), None);
        assert_eq!(share(capacity(None, None)), None);
        assert_eq!(share_in_use(after, before, second, capacity(Some(1), None)), None, "the counters were reset");
        assert_eq!(share_in_use(before, after, Duration::ZERO, capacity(Some(1), None)), None);
    }
}
