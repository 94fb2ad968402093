//! Runs the commands and rulesets that docs/deploy gives to its readers.

use std::path::Path;
use std::process::Command;

use lab::{Appliance, Reflector, TwoHosts};
use paramedic_report::document::ProbeTransport;
use rustix::process::Signal;

/// Returns the fenced code blocks of a page that are marked with this language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/deploy").join(page);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let fence = format!("```{language}\n");
    let found = text.split(&fence).skip(1).filter_map(|rest| Some(rest.split_once("```")?.0.to_owned()));
    found.collect()
}

#[test]
fn a_reflector_restored_from_its_backup_knows_its_devices() {
    let mut reflector = Reflector::serve(&[]);
    let appliance = Appliance::new().pair(&reflector, reflector.address());
    let id = reflector.id();
    reflector.end(Signal::TERM);
    let work = tempfile::tempdir().unwrap();
    let state = reflector.state();
    let shell = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-e", "-c", script]).current_dir(work.path()).env("STATE", &state);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
    };
    let [backup, restore] = blocks("backup.md", "sh").try_into().expect("a block to back up, and one to restore");
    shell(&backup);
    std::fs::remove_dir_all(&state).unwrap();
    shell(&restore);
    reflector.start().unwrap();
    assert_eq!(reflector.id(), id);
    assert!(reflector.run(&["audit", "verify"]).code == 0, "{:?}", reflector.run(&["audit", "verify"]));
    // The port was chosen anew.
    let outcome = appliance.speed_test(&["--peer", reflector.address(), "--engine", "echo", "-t", "1"]);
    assert_eq!(outcome.code, 0, "{outcome:?}\n{}", reflector.log());
}

#[test]
fn the_ruleset_for_nftables_lets_every_kind_of_test_through_and_nothing_else() {
    let Some(hosts) = TwoHosts::new() else { return };
    let reflector = Reflector::serve_on(&["0.0.0.0:4000"], Some(&hosts.near.netns), &[("MODE", "direct_ephemeral")]);
    let [ruleset] = blocks("firewall.md", "nft").try_into().expect("one ruleset");
    hosts.near.nft(&ruleset);
    let appliance = Appliance::in_netns(&hosts.far.netns).pair(&reflector, &format!("{}:4000", hosts.near.v4));
    for mode in ["tunneled", "direct"] {
        let outcome = appliance.speed_test(&["--data-mode", mode, "-t", "1", "--idle", "0.5"]);
        assert_eq!(outcome.code, 0, "{mode}: {outcome:?}");
        assert_eq!(outcome.result().latency.idle.unwrap().transport, ProbeTransport::Udp, "{mode}");
    }
    let outcome = appliance.speed_test(&["-u", "-b", "5M", "-t", "1", "--idle", "0"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    // A port that no rule accepts drops connections: without the ruleset this would be refused at once.
    let closed = hosts.far.exit_of(&["timeout", "1", "bash", "-c", &format!("</dev/tcp/{}/4001", hosts.near.v4)]);
    assert_eq!(closed, Some(124), "the connection to a closed port ends in a timeout");
}
