//! Parses the output of iperf3, ping and irtt. Pure.

use anyhow::Context;
use serde_json::Value;

/// The result of a run of iperf3 over TCP, as the receiver measured it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Iperf3Tcp {
    pub(crate) received_bps: f64,
    pub(crate) seconds: f64,
}

/// The result of a run of iperf3 with UDP datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Iperf3Udp {
    pub(crate) lost: u64,
    /// The number of reordered datagrams; `None` if iperf3 does not report it.
    pub(crate) out_of_order: Option<u64>,
}

/// The round trips that ping or irtt measured, in summary.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RoundTrips {
    pub(crate) median_ms: f64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// The packet loss towards the server and back, in percent; `None` unless the program reports both from 0 to 100.
    pub(crate) lost_ways: Option<[f64; 2]>,
}

/// Parses the JSON output of iperf3 over TCP.
pub(crate) fn iperf3_tcp(text: &str) -> anyhow::Result<Iperf3Tcp> {
    let sum = &iperf3(text)?["end"]["sum_received"];
    let number =
        |name: &str| sum[name].as_f64().with_context(|| format!("the output of iperf3 has no end.sum_received.{name}"));
    Ok(Iperf3Tcp { received_bps: number("bits_per_second")?, seconds: number("seconds")? })
}

/// Parses the JSON output of iperf3 with UDP datagrams.
pub(crate) fn iperf3_udp(text: &str) -> anyhow::Result<Iperf3Udp> {
    let output = iperf3(text)?;
    let lost =
        output["end"]["sum"]["lost_packets"].as_i64().context("the output of iperf3 has no end.sum.lost_packets")?;
    let streams = output["end"]["streams"].as_array().context("the output of iperf3 has no end.streams")?;
    let out_of_order = streams.iter().map(|stream| stream["udp"]["out_of_order"].as_u64()).sum::<Option<u64>>();
    // iperf3 counts a duplicate as a packet that was not lost, so the number can be negative.
    Ok(Iperf3Udp { lost: u64::try_from(lost).unwrap_or(0), out_of_order })
}

fn iperf3(text: &str) -> anyhow::Result<Value> {
    let output = serde_json::from_str::<Value>(text).context("the output of iperf3 is not valid JSON")?;
    match output["error"].as_str() {
        Some(error) => anyhow::bail!("iperf3: {error}"),
        None => Ok(output),
    }
}

/// Parses the output of ping, which is a line for each reply and a summary.
pub(crate) fn ping(text: &str) -> anyhow::Result<RoundTrips> {
    let is_duplicate = |line: &&str| line.contains("(DUP!)");
    let time = |line: &str| line.split("time=").nth(1)?.split(' ').next()?.parse::<f64>().ok();
    let times = text.lines().filter(|line| !is_duplicate(line)).filter_map(time).collect::<Vec<_>>();
    let summary = text
        .lines()
        .find(|line| line.contains("packets transmitted"))
        .context("the output of ping has no summary line")?;
    let mut numbers = summary.split(' ').filter_map(|word| word.parse::<u64>().ok());
    let (sent, received) = numbers.next().zip(numbers.next()).context("the summary line of ping has no counts")?;
    Ok(RoundTrips { median_ms: median(times).context("ping got no reply")?, sent, received, lost_ways: None })
}

/// Parses the JSON output of irtt.
pub(crate) fn irtt(text: &str) -> anyhow::Result<RoundTrips> {
    let stats = &serde_json::from_str::<Value>(text).context("the output of irtt is not valid JSON")?["stats"];
    let number = |name: &str| stats[name].as_f64().with_context(|| format!("the output of irtt has no stats.{name}"));
    let median_ns = stats["rtt"]["median"].as_f64().context("the output of irtt has no stats.rtt.median")?;
    // irtt subtracts counts without a sign. With duplicates its share can be far above 100 %, which is no share.
    let is_share = |percent: &f64| (0.0..=100.0).contains(percent);
    let lost = |name: &str| number(name).ok().filter(is_share);
    Ok(RoundTrips {
        median_ms: median_ns / 1e6,
        sent: number("packets_sent")? as u64,
        // irtt counts a copy as received.
        received: (number("packets_received")? - number("duplicates")?) as u64,
        lost_ways: lost("upstream_loss_percent").zip(lost("downstream_loss_percent")).map(<[f64; 2]>::from),
    })
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = if values.len().is_multiple_of(2) { values[values.len() / 2 - 1] } else { upper };
    Some((lower + upper) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_lines_are_read_without_duplicates() {
        let text = "PING 10.98.0.2 (10.98.0.2) 56(84) bytes of data.\n\
            64 bytes from 10.98.0.2: icmp_seq=1 ttl=62 time=20.1 ms\n\
            64 bytes from 10.98.0.2: icmp_seq=1 ttl=62 time=90.1 ms (DUP!)\n\
            64 bytes from 10.98.0.2: icmp_seq=3 ttl=62 time=20.3 ms\n\n\
            --- 10.98.0.2 ping statistics ---\n\
            3 packets transmitted, 2 received, +1 duplicates, 33.3333% packet loss, time 20ms\n\
            rtt min/avg/max/mdev = 20.1/20.2/20.3/0.1 ms\n";
        let read = ping(text).unwrap();
        assert_eq!((read.sent, read.received), (3, 2));
        assert!((read.median_ms - 20.2).abs() < 1e-9, "{read:?}");
        assert!(ping("connect: Network is unreachable\n").is_err());
    }

    #[test]
    fn iperf3s_errors_are_errors() {
        let error = iperf3_tcp(r#"{ "error": "unable to connect to server" }"#).unwrap_err();
        assert!(error.to_string().contains("unable to connect"));
        let text = r#"{ "end": { "sum_received": { "bits_per_second": 9.5e6, "seconds": 5.01 } } }"#;
        assert_eq!(iperf3_tcp(text).unwrap(), Iperf3Tcp { received_bps: 9.5e6, seconds: 5.01 });
    }

    #[test]
    fn irtts_statistics_are_read() {
        let text = r#"{ "stats": { "rtt": { "median": 20100000 }, "packets_sent": 300, "packets_received": 299,
            "duplicates": 2, "upstream_loss_percent": 1.0, "downstream_loss_percent": 0.0 } }"#;
        let read = irtt(text).unwrap();
        assert_eq!((read.median_ms, read.sent, read.received), (20.1, 300, 297));
        assert_eq!(read.lost_ways, Some([1.0, 0.0]));
        let overflow = text.replace("1.0", "12380365150140639232.0");
        assert_eq!(irtt(&overflow).unwrap().lost_ways, None);
    }
}
