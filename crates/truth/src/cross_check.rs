//! Compares the emulator with the kernel's shapers: the token bucket filter (tc-tbf(8)) and the hierarchical token
//! bucket (tc-htb(8)). All get the same rate and queue, and iperf3 measures the goodput over each. With side effects:
//! runs programs.

use std::process::{Child, Stdio};

use anyhow::Context;
use emulator::{DirectionSettings, Family, Hop, Topology};

use crate::peer_output;

/// The link rates at which the emulator is compared with the kernel's shapers, in Mbit/s.
const RATES: [f64; 4] = [5.0, 20.0, 100.0, 300.0];

/// The length of an Ethernet header in bytes. The kernel's shapers count these headers, the emulator does not.
const ETHERNET: f64 = 14.0;

/// The length of the queue of each link, in milliseconds.
const QUEUE_MS: f64 = 50.0;

/// Measures the goodput over the emulator and over the kernel's shapers at each rate. Prints the table line by line
/// through `line`.
pub(crate) fn print(mut line: impl FnMut(&str)) -> anyhow::Result<()> {
    line(
        "goodput of iperf3 in Mbit/s, and how much the emulator's exceeds that of the shaper; the rate is that of IP packets",
    );
    line("rate        emulator     tbf                      htb");
    for rate in RATES {
        let direction =
            DirectionSettings { rate_mbit: Some(rate), queue_ms: Some(QUEUE_MS), ..DirectionSettings::default() };
        let emulated = Hop { up: Some(direction.clone()), down: Some(direction), mtu: None };
        let ours = goodput(&Topology::new(&[Hop::default(), emulated, Hop::default()], 1, &[])?)?;
        let mut row = format!("{rate:<12}{ours:<13.3}");
        for shaper in [tbf(rate), htb(rate)] {
            let plain = Topology::new(&[Hop::default(), Hop::default(), Hop::default()], 1, &[])?;
            for command in &shaper {
                plain.hosts()[1].run(&command.split(' ').collect::<Vec<_>>())?;
            }
            let kernels = goodput(&plain)?;
            let difference = format!("{:+.2} %", (ours / kernels - 1.0) * 100.0);
            row += &format!("{kernels:<13.3}{difference:<12}");
        }
        line(row.trim_end());
    }
    Ok(())
}

/// The commands that limit the upload to `rate` (Mbit/s of IP packets) with a token bucket filter.
fn tbf(rate: f64) -> Vec<String> {
    let bits = ethernet_bits(rate);
    vec![format!("tc qdisc add dev right root tbf rate {bits}bit burst 16kb latency {QUEUE_MS}ms")]
}

/// The commands that limit the upload to `rate` (Mbit/s of IP packets) with a class of a hierarchical token bucket. Its
/// queue is a FIFO with a limit in bytes.
fn htb(rate: f64) -> Vec<String> {
    let bits = ethernet_bits(rate);
    let queue = (bits as f64 / 8.0 * QUEUE_MS / 1000.0) as u64;
    vec![
        "tc qdisc add dev right root handle 1: htb default 1".to_owned(),
        format!(
            "tc class add dev right parent 1: classid 1:1 htb rate {bits}bit ceil {bits}bit burst 16kb cburst 16kb"
        ),
        format!("tc qdisc add dev right parent 1:1 bfifo limit {queue}"),
    ]
}

/// The rate in bit/s with Ethernet headers, at which full packets leave at `rate` (Mbit/s of IP packets).
fn ethernet_bits(rate: f64) -> u64 {
    (rate * 1e6 * (1500.0 + ETHERNET) / 1500.0) as u64
}

/// Measures the goodput of an upload with iperf3, in Mbit/s.
fn goodput(topology: &Topology) -> anyhow::Result<f64> {
    let mut server = topology.reflector().command("iperf3", &["-s", "-1"]);
    let mut server = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("cannot run iperf3")?;
    let run = || {
        crate::peers::await_port(topology.reflector(), "-Htln", 5201)?;
        let to = topology.reflector_address(Family::Ipv4).to_string();
        let client = topology.appliance().command("iperf3", &["-c", &to, "-J", "-t", "4", "-O", "1"]).output()?;
        peer_output::iperf3_tcp(&String::from_utf8_lossy(&client.stdout))
    };
    let read = run();
    end(&mut server);
    Ok(read?.received_bps / 1e6)
}

fn end(server: &mut Child) {
    // The server ends by itself after a test.
    let _ = server.kill();
    let _ = server.wait();
}
