//! Sessions of the engine iperf3 while unpaired clients attack their port: with a reflector that runs as root, and with
//! one that runs as an unprivileged user.

use std::process::Command;

use lab::lane_siege::besiege_lane;
use lab::{Appliance, Reflector, loopback};

use crate::measured::Measured;
use crate::scale::Scale;

pub(super) fn play(scale: Scale) -> anyhow::Result<Measured> {
    if !Command::new("iperf3").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Ok(Measured::skipped("there is no iperf3 on this host"));
    }
    let sessions = scale.of(50, 3);
    let mut measured = Measured::default();
    for (user, port) in [("root", 47_301), ("nobody", 47_302)] {
        let text = port.to_string();
        let settings = [
            ("MODE", "direct_ephemeral"),
            ("IPERF3_ENABLED", "true"),
            ("DATA_PORT_RANGE", text.as_str()),
            ("MAX_TESTS_PER_HOUR", "10000"),
        ];
        let listen = format!("{}:0", loopback::address());
        let reflector = match user {
            "nobody" => Reflector::serve_as_nobody(&[&listen], &settings),
            _ => Some(Reflector::serve_on(&[&listen], None, &settings)),
        };
        let Some(mut reflector) = reflector else {
            measured.note(format!("not as {user}"));
            continue;
        };
        let appliance = Appliance::new().pair(&reflector, reflector.address());
        let found = besiege_lane(&mut reflector, &appliance, port, sessions);
        measured.outcome(found.complete == sessions, format!("as {user} {} of {sessions} done", found.complete));
        measured.outcome(
            found.answered == 0 && found.udp_clients > 0,
            format!(
                "{} connections, {} TCP clients, {} UDP clients, {} datagrams: {} answered",
                found.connections, found.clients, found.udp_clients, found.datagrams, found.answered
            ),
        );
        if scale.judges_times() {
            let enough = found.udp_clients >= 25;
            measured.outcome(enough, format!("{} of 25 UDP tries at least", found.udp_clients));
        }
        measured.outcome(found.children_left == 0, format!("{} children left", found.children_left));
    }
    Ok(measured)
}
