//! Compares the emulator with the kernel's token bucket filter (tc-tbf(8)). Both get the same rate and queue, and
//! iperf3 measures the goodput over each. With side effects: runs programs.

use std::process::{Child, Stdio};

use anyhow::Context;
use emulator::{DirectionSettings, Family, Hop, Topology};

use crate::peer_output;

/// The link rates at which the emulator is compared with tbf, in Mbit/s.
const RATES: [f64; 4] = [5.0, 20.0, 100.0, 300.0];

/// The length of an Ethernet header in bytes. tbf counts these headers, the emulator does not.
const ETHERNET: f64 = 14.0;

/// Measures the goodput over the emulator and over tbf at each rate. Prints the table line by line through `line`.
pub(crate) fn print(mut line: impl FnMut(&str)) -> anyhow::Result<()> {
    line(
        "rate        emulator     tbf          difference   (goodput of iperf3, Mbit/s; the rate is that of IP packets)",
    );
    for rate in RATES {
        let direction =
            DirectionSettings { rate_mbit: Some(rate), queue_ms: Some(50.0), ..DirectionSettings::default() };
        let emulated = Hop { up: Some(direction.clone()), down: Some(direction), mtu: None };
        let ours = goodput(&Topology::new(&[Hop::default(), emulated, Hop::default()], 1, &[])?)?;
        let plain = Topology::new(&[Hop::default(), Hop::default(), Hop::default()], 1, &[])?;
        let ethernet = format!("{}bit", (rate * 1e6 * (1500.0 + ETHERNET) / 1500.0) as u64);
        let tbf = ["tc", "qdisc", "add", "dev", "right", "root", "tbf", "rate", &ethernet];
        plain.hosts()[1].run(&[&tbf[..], &["burst", "16kb", "latency", "50ms"]].concat())?;
        let kernels = goodput(&plain)?;
        let difference = (ours / kernels - 1.0) * 100.0;
        line(&format!("{rate:<12}{ours:<13.3}{kernels:<13.3}{difference:+.2} %"));
    }
    Ok(())
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
