//! What confines the reflector and the iperf3 process that it starts: the exposure of the systemd unit as systemd rates
//! it, and the restrictions that the kernel reports for a running iperf3 process of a session. The tests of
//! `paramedic-iperf3` (`sandbox.rs`) try which system calls such a process can make.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::{Appliance, Reflector};

use crate::measured::Measured;
use crate::scale::Scale;

/// The highest accepted exposure of the unit, on systemd's scale from 0 to 10.
const MOST_EXPOSURE: f64 = 1.5;
/// The data port of the sessions that use the engine iperf3.
const PORT: &str = "47303";

pub(super) fn play(_: Scale) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    match exposure()? {
        Some(exposure) => {
            let text = format!("exposure of reflector.service {exposure:.1}, at most {MOST_EXPOSURE}");
            measured.outcome(exposure <= MOST_EXPOSURE, text);
        }
        None => measured.note("exposure not checked: there is no systemd-analyze on this host"),
    }
    match child_of_the_lane()? {
        Some(status) => {
            for (field, value) in [("NoNewPrivs", "1"), ("Seccomp", "2"), ("CapEff", "0000000000000000")] {
                let is = field_of(&status, field).unwrap_or("absent");
                measured.outcome(is == value, format!("{field} of iperf3 is {is}"));
            }
        }
        None => measured.note("no child checked: there is no iperf3 on this host"),
    }
    Ok(measured)
}

/// The exposure of the packaged unit; `None` if `systemd-analyze` is not installed.
fn exposure() -> anyhow::Result<Option<f64>> {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/systemd/reflector.service");
    let mut command = Command::new("systemd-analyze");
    // The exit code says whether the exposure is below a threshold in tenths; the row compares it itself.
    command.args(["security", "--offline=true", "--no-pager", "--threshold=100", unit]);
    let output = match command.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        output => output?,
    };
    let printed = String::from_utf8_lossy(&output.stdout);
    let found = exposure_in(&printed).with_context(|| format!("systemd-analyze printed no exposure: {output:?}"))?;
    Ok(Some(found))
}

/// The number in "Overall exposure level for reflector.service: 1.4 OK".
fn exposure_in(printed: &str) -> Option<f64> {
    let line = printed.lines().find(|line| line.contains("Overall exposure level"))?;
    line.rsplit_once(": ")?.1.split(' ').next()?.parse().ok()
}

/// Reads `/proc/PID/status` of the iperf3 process of a running session; `None` if iperf3 is not installed.
fn child_of_the_lane() -> anyhow::Result<Option<String>> {
    if !Command::new("iperf3").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Ok(None);
    }
    let settings = [("MODE", "direct_ephemeral"), ("IPERF3_ENABLED", "true"), ("DATA_PORT_RANGE", PORT)];
    let mut reflector = Reflector::serve(&settings);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let test =
        appliance.start(&["speed-test", "--engine", "iperf3", "--json-stream", "-t", "60", "--idle", "0", "-b", "5M"]);
    // When bytes flow, the process has been confined.
    while !test.line(Duration::from_secs(30))?.contains("\"latency\"") {}
    let children = reflector.process().children();
    ensure!(
        children.len() == 1 && children[0].1 == "iperf3",
        "iperf3 is not the only child of the reflector: {children:?}"
    );
    Ok(Some(fs::read_to_string(format!("/proc/{}/status", children[0].0.as_raw_nonzero()))?))
}

fn field_of<'a>(status: &'a str, field: &str) -> Option<&'a str> {
    let mut lines = status.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(name, _)| *name == field).map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exposure_is_the_number_after_the_unit() {
        let printed = "  NAME DESCRIPTION\n→ Overall exposure level for reflector.service: 1.4 OK :-)\n";
        assert_eq!(exposure_in(printed), Some(1.4));
        assert_eq!(exposure_in("✗ PrivateNetwork= Service has access: 0.5\n"), None);
    }
}
